"""Any upstream that speaks the OpenAI HTTP API: hosted, vLLM, SGLang, llama.cpp's server, another gateway."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trimtab.transport import HttpEngine, HttpReply, Origin, header_lines
from trimtab.types import Dialect, Timeouts


class Config(msgspec.Struct, frozen=True):
    """One `[engines.NAME]` table of kind `openai_http`."""

    base_url: Annotated[str, msgspec.Meta(min_length=1)]  # ends in /v1
    api_key_env: str = ""  # variable that holds the secret; empty: the client's own key passes through
    provider: str = ""  # genai-prices provider id; empty: guessed from the model's name
    accept_any_model: bool | None = None  # None: yes, unless [models] lists models of this engine
    ca_file: str = ""  # further trusted CA certificates, PEM


class OpenAIEngine(HttpEngine):
    """Implements `ports.Engine`."""

    kind = "openai_http"
    dialect = Dialect.OPENAI

    async def open(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Timeouts,
        client_key: str,
    ) -> HttpReply:
        """Send to `base_url` + `path` without its /v1. See `ports.Engine.open`."""
        head = header_lines(headers)
        if key := self._secret or client_key:
            head += b"authorization: Bearer %b\r\n" % key.encode()
        where = self._origin.base_path + path.removeprefix("/v1")
        return await self._origin.request(method, where, head, body, timeouts.connect_s)


def build(name: str, config: Config, secret: str) -> OpenAIEngine:
    """An engine inside the running event loop."""
    return OpenAIEngine(name, config.provider, secret, Origin(config.base_url, ca_file=config.ca_file))
