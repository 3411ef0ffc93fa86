"""A vLLM that Trimtab starts and supervises, spoken to over HTTP on loopback. vLLM itself is installed by its user.

`settings` is its table in the configuration, `flags` what that is on vLLM's command line, `cannot` what is refused;
`server` runs the process and `client` is the gateway's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trimtab.engines.vllm.cannot import cannot
from trimtab.engines.vllm.client import VllmEngine, build
from trimtab.engines.vllm.flags import command_line
from trimtab.engines.vllm.server import GRACE_S, reserve_port
from trimtab.engines.vllm.settings import Config, model_name

__all__ = [
    "OWN_LOG", "STOP_S", "Config", "VllmEngine", "build", "cannot", "command_line", "model_name", "reserve_port", "run",
]  # fmt: skip

OWN_LOG: Final = True
"""It says a lot: under `trimtab serve` that goes to a file of its own."""

STOP_S: Final = GRACE_S + 5
"""How long it may take to stop."""


def run(config: Config, port: int, ready: Callable[[], None]) -> int:
    """The engine process itself: start vLLM on that loopback port and wait for its end; returns its exit code.

    Raises ConfigError with the way out if it cannot be started. SIGTERM ends it within `GRACE_S`.
    """
    from trimtab.engines.vllm.server import serve

    return serve(config, port, ready)
