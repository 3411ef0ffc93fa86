"""The gateway's side of a vLLM that Trimtab started: its OpenAI-compatible API on loopback."""

from __future__ import annotations

from trimtab.engines.vllm.settings import HOST, Config
from trimtab.loopback import LoopbackEngine
from trimtab.transport import Origin
from trimtab.types import Dialect


class VllmEngine(LoopbackEngine):
    """Implements `ports.Engine` over the supervised process, whose life is its supervisor's."""

    kind = "vllm"
    dialect = Dialect.OPENAI


def build(name: str, config: Config, port: int) -> VllmEngine:
    """An engine inside the running event loop, for the server on `port`."""
    return VllmEngine(name, config.provider, "", Origin(f"http://{HOST}:{port}"))
