"""Any upstream that speaks the Anthropic Messages API."""

from __future__ import annotations

import msgspec

from trimtab.transport import HttpEngine, HttpReply, Origin, header_lines
from trimtab.types import Dialect, Timeouts

_VERSION = b"2023-06-01"  # sent where the client, speaking another dialect, names none


class Config(msgspec.Struct, frozen=True):
    """One `[engines.NAME]` table of kind `anthropic_http`."""

    base_url: str = "https://api.anthropic.com"  # without /v1
    api_key_env: str = ""  # variable that holds the secret; empty: the client's own key passes through
    provider: str = "anthropic"  # genai-prices provider id
    accept_any_model: bool | None = None  # None: yes, unless [models] lists models of this engine
    ca_file: str = ""  # further trusted CA certificates, PEM


class AnthropicEngine(HttpEngine):
    """Implements `ports.Engine`."""

    kind = "anthropic_http"
    dialect = Dialect.ANTHROPIC

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
        head = header_lines(headers)
        key = self._secret or client_key
        if not any(name == b"anthropic-version" for name, _ in headers):
            head += b"anthropic-version: %b\r\n" % _VERSION
        if key.startswith("sk-ant-oat"):  # an OAuth token, which the API takes as a bearer only
            head += b"authorization: Bearer %b\r\n" % key.encode()
        elif key:
            head += b"x-api-key: %b\r\n" % key.encode()
        return await self._origin.request(method, self._origin.base_path + path, head, body, timeouts.connect_s)


def build(name: str, config: Config, secret: str) -> AnthropicEngine:
    """An engine inside the running event loop."""
    return AnthropicEngine(name, config.provider, secret, Origin(config.base_url, ca_file=config.ca_file))
