"""What others are told of rows once the ledger has them: OpenTelemetry, log lines. Never on a request's path."""
