"""The gateway's side of the embedded engine: its server's HTTP API on loopback."""

from __future__ import annotations

from trimtab.engines.llama_cpp.refusal import refuse
from trimtab.engines.llama_cpp.settings import HOST, Config
from trimtab.errors import TrimtabError
from trimtab.loopback import LoopbackEngine
from trimtab.transport import Origin
from trimtab.types import Dialect, Request


class LlamaCppEngine(LoopbackEngine):
    """Implements `ports.Engine` over the supervised server process."""

    kind = "llama_cpp"
    dialect = Dialect.OPENAI

    def refuse(self, request: Request) -> TrimtabError | None:
        """What the server would drop silently or count wrongly; see `refusal`."""
        return refuse(request)


def build(name: str, config: Config, port: int) -> LlamaCppEngine:
    """An engine inside the running event loop, for the server on `port`.

    The server closes a connection after each stream without saying so beforehand: a call that follows at once on it,
    as one from the queue does, would be lost.
    """
    return LlamaCppEngine(name, config.provider, "", Origin(f"http://{HOST}:{port}", keep_alive=False))
