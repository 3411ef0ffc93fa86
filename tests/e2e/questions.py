"""Many questions whose right answers are known, and what a gateway says of its cache."""

from __future__ import annotations

import re
import threading

from asking import SAME, send
from gateway_process import Gateway
from upstream import Upstream, wait_until
from upstream_shapes import Act


def lines(gateway: Gateway) -> list[str]:
    return [line for line in gateway.log().splitlines() if "answer cache" in line]


def metric(gateway: Gateway, name: str) -> float:
    found = re.search(rf"^{name} ([0-9.e+-]+)$", gateway.get("/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


class Questions:
    """Many questions whose right answers are known, asked again and again by several clients."""

    def __init__(self, gateway: Gateway, upstream: Upstream, count: int = 12, size: int = 200) -> None:
        self._gateway = gateway
        self.expected: dict[str, str] = {}
        for n in range(count):
            text = f"the answer to question {n} " + chr(97 + n % 26) * size
            self.expected[upstream.prompt(Act(text=text))] = text
        self.words: dict[str, int] = {}
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(3)]

    def ask(self, n: int) -> str:
        """Ask one; returns what the cache said."""
        pair = SAME[n % 2]
        prompt = list(self.expected)[n % len(self.expected)]
        got = send(self._gateway, pair, pair.body(prompt, stream=n % 3 == 0))
        text = got.body.decode()
        said = "".join(re.findall(r'"(?:content|text)": ?"((?:[^"\\]|\\.)*)"', text))
        if got.status != 200 or got.broken or self.expected[prompt] not in said:
            self.problems.append(f"{'broken' if got.broken else got.status} {text[:500]}")
        word = str(got.headers["x-trimtab-cache"])
        self.words[word] = self.words.get(word, 0) + 1
        return word

    def _run(self, start: int) -> None:
        n = start
        while not self._stop.is_set():
            try:
                self.ask(n)
            except Exception as problem:  # whatever it is, it is the finding
                self.problems.append(repr(problem))
            n += 1

    def __enter__(self) -> Questions:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def more(self, count: int, word: str | None = None) -> None:
        """Wait until so many more were answered (as the cache said)."""

        def now() -> int:
            return self.words.get(word, 0) if word else sum(self.words.values())

        before = now()
        wait_until(lambda: now() >= before + count or self.problems, 30, f"{count} more answers ({word})")
