"""Answers, journal and ledger at rest: one file a kind of store."""
