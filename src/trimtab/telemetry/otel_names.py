"""The names of OpenTelemetry's conventions that we use, and how ours map to them.

Pinned to the semantic conventions 1.44.0, whose `gen_ai` part is in development: names may change with a later one, and
change here only with `SCHEMA_URL`. What has no name there is `trimtab.*`.
"""

from __future__ import annotations

from typing import Final

from trimtab.types import AttemptRecord, End, Record

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK_S: Final = "gen_ai.response.time_to_first_chunk"
CONVERSATION: Final = "gen_ai.conversation.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"  # cached ones included
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"  # reasoning included
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"
ERROR: Final = "error.type"
METHOD: Final = "http.request.method"
STATUS: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
PATH: Final = "url.path"

CLIENT_DURATION: Final = "gen_ai.client.operation.duration"
CLIENT_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
CLIENT_TOKENS: Final = "gen_ai.client.token.usage"
SERVER_DURATION: Final = "gen_ai.server.request.duration"
SERVER_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"
SERVER_PER_TOKEN: Final = "gen_ai.server.time_per_output_token"

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
}
_PROVIDERS = {  # by the price list's ids
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gen_ai",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
}


def path_of(record: Record) -> str:
    """The request's path without its query, which may hold anything."""
    return record.path.partition("?")[0]


def operation(record: Record) -> str:
    """What was asked for; "other" for a call that was only passed through."""
    return _OPERATIONS.get(path_of(record), "other")


def provider(attempt: AttemptRecord) -> str:
    """Who served it, by the conventions' name where there is one; an engine of one's own goes by its name."""
    return _PROVIDERS.get(attempt.provider, attempt.provider) or attempt.engine


def error_of(end: str, status: int) -> str:
    """`error.type`: the HTTP status, or how it ended; "" where all went well."""
    if status >= 400:
        return str(status)
    return "" if end == End.OK else str(end)
