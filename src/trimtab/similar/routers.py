"""Trained routers at work, in the process beside the workers: each is read from its file when it is first asked."""

from __future__ import annotations

from pathlib import Path

from trimtab.routing import router
from trimtab.routing.serving import Serving
from trimtab.semantic.embed import Embedder
from trimtab.similar.messages import Gain, Gained

_Version = tuple[int, int]


class Routers:
    """Not thread-safe: one thread owns it."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, tuple[_Version, Serving]] = {}

    def warm(self, path: str) -> None:
        """Have a router ready before it is asked. Raises as `answer` does."""
        self._serving(path).gain("hello", self._embedder)

    def answer(self, asked: Gain) -> Gained:
        """The expected gain. Raises ConfigError for a file that is no router, OSError for none."""
        serving = self._serving(asked.router)
        answered = asked.answered
        if answered is None:
            return Gained(asked.n, *serving.gain(asked.prompt, self._embedder))
        after = serving.after(answered.prompt, answered.answer, answered.gain, answered.second)
        return Gained(asked.n, after)

    def _serving(self, name: str) -> Serving:
        found = Path(name).stat()
        version = found.st_mtime_ns, found.st_size
        known = self._known.get(name)
        if known is None or known[0] != version:
            known = self._known[name] = version, Serving(router.read(Path(name))[0])
        return known[1]
