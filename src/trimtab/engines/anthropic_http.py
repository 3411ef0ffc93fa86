"""Any upstream that speaks the Anthropic Messages API."""

from __future__ import annotations

import msgspec

from trimtab.errors import TrimtabError
from trimtab.transport import HttpReply, Origin
from trimtab.types import Dialect, Request, Timeouts

_VERSION = b"2023-06-01"  # sent where the client, speaking another dialect, names none


class Config(msgspec.Struct, frozen=True):
    """One `[engines.NAME]` table of kind `anthropic_http`."""

    base_url: str = "https://api.anthropic.com"  # without /v1
    api_key_env: str = ""  # variable that holds the secret; empty: the client's own key passes through
    provider: str = "anthropic"  # genai-prices provider id
    accept_any_model: bool | None = None  # None: yes, unless [models] lists models of this engine
    ca_file: str = ""  # further trusted CA certificates, PEM


class AnthropicEngine:
    """Implements `ports.Engine` over one origin."""

    kind = "anthropic_http"
    dialect = Dialect.ANTHROPIC

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
        """Send to `base_url` + `path`. See `ports.Engine.open`."""
        key = self._secret or client_key
        lines = [b"%b: %b\r\n" % header for header in headers]
        if not any(name == b"anthropic-version" for name, _ in headers):
            lines.append(b"anthropic-version: %b\r\n" % _VERSION)
        if key.startswith("sk-ant-oat"):  # an OAuth token, which the API takes as a bearer only
            lines.append(b"authorization: Bearer %b\r\n" % key.encode())
        elif key:
            lines.append(b"x-api-key: %b\r\n" % key.encode())
        head = b"".join(lines)
        return await self._origin.request(method, self._origin.base_path + path, head, body, timeouts.connect_s)

    async def ready(self) -> bool:
        """Always: whether a remote answers is known only by asking, which costs."""
        return True

    async def close(self) -> None:
        """Drop all connections."""
        await self._origin.close()


def build(name: str, config: Config, secret: str) -> AnthropicEngine:
    """An engine inside the running event loop."""
    return AnthropicEngine(name, config, secret)
