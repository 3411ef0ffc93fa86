"""A question of ours to a model, on behalf of a client's request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from trimtab.types import Dialect, Request


def question(request: Request, model: str, fields: Mapping[str, Any]) -> Request:
    """The request with these fields (of OpenAI's dialect) in place of its own, to this model."""
    return structs.replace(
        request,
        dialect=Dialect.OPENAI,
        path="/v1/chat/completions",
        model=model,
        fields={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()},
        stream=False,
        wants_usage=False,
        headers=(),
        variant=b"",
        idempotency="",
    )
