"""Any upstream that speaks the OpenAI HTTP API: hosted, vLLM, SGLang, llama.cpp's server, another gateway."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trimtab.errors import TrimtabError
from trimtab.transport import HttpReply, Origin
from trimtab.types import Dialect, Request, Timeouts


class Config(msgspec.Struct, frozen=True):
    """One `[engines.NAME]` table of kind `openai_http`."""

    base_url: Annotated[str, msgspec.Meta(min_length=1)]  # ends in /v1
    api_key_env: str = ""  # variable that holds the secret; empty: the client's own key passes through
    provider: str = ""  # genai-prices provider id; empty: guessed from the model's name
    accept_any_model: bool | None = None  # None: yes, unless [models] lists models of this engine
    ca_file: str = ""  # further trusted CA certificates, PEM


class OpenAIEngine:
    """Implements `ports.Engine` over one origin."""

    kind = "openai_http"
    dialect = Dialect.OPENAI

    def __init__(self, name: str, config: Config, secret: str) -> None:
        self.name = name
        self.provider = config.provider
        self.holds_secret = bool(secret)
        self._secret = secret
        self._origin = Origin(config.base_url, ca_file=config.ca_file)

    def refuse(self, request: Request) -> TrimtabError | None:
        """Nothing: the upstream judges for itself."""
        return None

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
        key = self._secret or client_key
        lines = [b"%b: %b\r\n" % header for header in headers]
        if key:
            lines.append(b"authorization: Bearer %b\r\n" % key.encode())
        head = b"".join(lines)
        return await self._origin.request(
            method, self._origin.base_path + path.removeprefix("/v1"), head, body, timeouts.connect_s
        )

    async def ready(self) -> bool:
        """Always: whether a remote answers is known only by asking, which costs."""
        return True

    async def close(self) -> None:
        """Drop all connections."""
        await self._origin.close()


def build(name: str, config: Config, secret: str) -> OpenAIEngine:
    """An engine inside the running event loop."""
    return OpenAIEngine(name, config, secret)
