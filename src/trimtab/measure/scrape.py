"""Ask an engine what it says of itself, once or over a window."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from trimtab.errors import TrimtabError, UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable
from trimtab.serving.readings import Page, Reading, read
from trimtab.transport import HttpReply, Origin, header_lines

_CONNECT_S: Final = 3.0
_ANSWER_S: Final = 10.0  # llama.cpp answers between two steps, and a step on a busy processor takes seconds
_READ_BYTES: Final = 8 << 20


class Scraper:
    """An engine by URL; a path such as /v1 does not matter. Create it inside the event loop that uses it."""

    def __init__(self, url: str, headers: Sequence[tuple[bytes, bytes]] = (), *, ca_file: str = "") -> None:
        self._origin = Origin(url, ca_file=ca_file)
        self._prefix = self._origin.base_path.removesuffix("/v1")
        self._head = header_lines(list(headers))
        self._now = asyncio.get_running_loop().time

    async def page(self) -> Page:
        """What it says now. Raises UpstreamError with the way out."""
        status, metrics = await self._get("/metrics")
        at = self._now()
        if status in (404, 501):
            raise UpstreamInvalid(
                f"{self._origin.label} has no /metrics: start llama.cpp's server with --metrics, or check the URL"
            )
        if status != 200:
            raise UpstreamInvalid(f"{self._origin.label}/metrics answered {status}: {metrics[:200]}")
        if "llamacpp:" not in metrics:
            return Page(at, metrics)
        status, slots = await self._get("/slots")
        return Page(at, metrics, slots if status == 200 else None)

    async def window(self, window_s: float, every_s: float) -> list[Page]:
        """What it says over a window: at its begin, at its end, each `every_s` seconds. Raises UpstreamError."""
        pages = [await self.page()]  # however long that took: the window begins with its answer
        while (left_s := pages[0].at + window_s - self._now()) > 0:
            await asyncio.sleep(min(every_s, left_s))
            pages.append(await self.page())
        return pages

    def understood(self, pages: Sequence[Page]) -> list[Reading]:
        """The readings of its pages. Raises UpstreamInvalid, naming the engine and the line."""
        try:
            return [read(page) for page in pages]
        except UpstreamInvalid as error:
            raise UpstreamInvalid(f"{self._origin.label}: {error.message}") from None

    async def close(self) -> None:
        """Drop its connections."""
        await self._origin.close()

    async def _get(self, path: str) -> tuple[int, str]:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reply = await self._ask(self._prefix + path)
                return reply.status, (await reply.read(_READ_BYTES)).decode(errors="replace")
        except TimeoutError:
            raise UpstreamTimeout(f"{self._origin.label}{path} did not answer within {_ANSWER_S:g} s") from None
        except UpstreamError:
            raise
        except TrimtabError as error:
            raise UpstreamInvalid(f"{self._origin.label}{path}: {error.message}") from None

    async def _ask(self, path: str) -> HttpReply:
        try:
            return await self._origin.request("GET", path, self._head, b"", _CONNECT_S)
        except UpstreamUnreachable:  # llama.cpp drops a connection after some requests; a fresh one is another matter
            return await self._origin.request("GET", path, self._head, b"", _CONNECT_S)
