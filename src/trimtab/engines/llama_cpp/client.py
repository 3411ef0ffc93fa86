"""The gateway's side of the embedded engine: its server's HTTP API on loopback."""

from __future__ import annotations

from trimtab.engines.llama_cpp.refusal import refuse
from trimtab.engines.llama_cpp.settings import HOST, Config
from trimtab.errors import TrimtabError, UpstreamError
from trimtab.transport import HttpEngine, HttpReply, Origin, header_lines
from trimtab.types import Dialect, Request, Timeouts


class LlamaCppEngine(HttpEngine):
    """Implements `ports.Engine` over the supervised server process, whose life is its supervisor's."""

    kind = "llama_cpp"
    dialect = Dialect.OPENAI

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
        return await self._origin.request(method, path, header_lines(headers), body, timeouts.connect_s)

    async def ready(self) -> bool:
        """Whether the model is loaded and the server answers."""
        try:
            reply = await self._origin.request("GET", "/health", b"", b"", 1.0)
            await reply.read(10_000)
        except UpstreamError:
            return False
        return reply.status == 200


def build(name: str, config: Config, port: int) -> LlamaCppEngine:
    """An engine inside the running event loop, for the server on `port`."""
    return LlamaCppEngine(name, config.provider, "", Origin(f"http://{HOST}:{port}"))
