"""An engine for work on a file, without a gateway: started, asked in its server's own words, and ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from trimtab.engines.llama_cpp.server import reserve_port, serve
from trimtab.engines.llama_cpp.settings import HOST, Config
from trimtab.errors import ConfigError, UpstreamError
from trimtab.orphans import death_signal

_ANSWER_S = 120.0


class Ask(Protocol):
    """Posts a JSON object to one of the server's paths, and returns its answer. Raises UpstreamError."""

    def __call__(self, path: str, /, **fields: Any) -> Any:
        """`fields` are the object's."""


@contextlib.contextmanager
def served(config: Config) -> Iterator[Ask]:
    """The engine on `config.model`, a file, in a process of its own for as long as the block runs.

    Raises UpstreamError if it cannot serve the file; its own words are on stderr.
    """
    holder, port = reserve_port()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_serve, args=(config, port, ready.set), daemon=True)
    process.start()

    def ask(path: str, /, **fields: Any) -> Any:
        # One each: the server ends a connection that was idle for seconds.
        with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=_ANSWER_S)) as connection:
            connection.request("POST", path, json.dumps(fields), {"content-type": "application/json"})
            reply = connection.getresponse()
            text = reply.read().decode()
        if reply.status != 200:
            raise UpstreamError(f"{path} of the engine on {config.model} says {reply.status}: {text[:300]}")
        return json.loads(text)

    try:
        while not ready.wait(1.0):
            if not process.is_alive():
                raise UpstreamError(f"the engine cannot serve {config.model}; its reason is above")
        yield ask
    finally:
        process.terminate()
        process.join()
        holder.close()


def _serve(config: Config, port: int, ready: Callable[[], None]) -> None:
    death_signal()()  # a program that is killed does not come to end this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks; it ends this one
    try:
        serve(config, Path(config.model), port, ready)
    except ConfigError as error:
        sys.exit(str(error))
