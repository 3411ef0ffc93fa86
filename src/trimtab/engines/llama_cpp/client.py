"""The gateway's side of the embedded engine: its server's HTTP API on loopback."""

from __future__ import annotations

from trimtab.engines.llama_cpp.refusal import refuse
from trimtab.engines.llama_cpp.settings import HOST, Config
from trimtab.errors import TrimtabError, UpstreamError
from trimtab.transport import HttpReply, Origin
from trimtab.types import Dialect, Request, Timeouts


class LlamaCppEngine:
    """Implements `ports.Engine` over the supervised server process."""

    kind = "llama_cpp"
    dialect = Dialect.OPENAI
    holds_secret = False

    def __init__(self, name: str, config: Config, port: int) -> None:
        self.name = name
        self.provider = config.provider
        self._origin = Origin(f"http://{HOST}:{port}")

    def refuse(self, request: Request) -> TrimtabError | None:
        """What the server would drop silently or count wrongly; see `refusal`."""
        return refuse(request)

    async def open(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Timeouts,
        client_key: str,
    ) -> HttpReply:
        """Send to the server; the client's key stays here. See `ports.Engine.open`."""
        head = b"".join([b"%b: %b\r\n" % header for header in headers])
        return await self._origin.request(method, path, head, body, timeouts.connect_s)

    async def ready(self) -> bool:
        """Whether the model is loaded and the server answers."""
        try:
            reply = await self._origin.request("GET", "/health", b"", b"", 1.0)
            await reply.read(10_000)
        except UpstreamError:
            return False
        return reply.status == 200

    async def close(self) -> None:
        """Drop all connections; the process is its supervisor's."""
        await self._origin.close()


def build(name: str, config: Config, port: int) -> LlamaCppEngine:
    """An engine inside the running event loop, for the server on `port`."""
    return LlamaCppEngine(name, config, port)
