"""Engines whose server is a process of ours on a loopback port: it may be loading, or about to be started again."""

from __future__ import annotations

import asyncio
import contextlib

from trimtab.errors import UpstreamError, UpstreamNotConnected, UpstreamUnreachable
from trimtab.transport import HttpEngine, HttpReply, Origin, header_lines
from trimtab.types import Timeouts

_POLL_S = 0.1
_LOADING = 503


class LoopbackEngine(HttpEngine):
    """A server whose life is its supervisor's; `/health` answers 200 once its model is loaded.

    One that died is started again. Calls that come meanwhile wait for it, as long as they may take to connect.
    """

    def __init__(self, name: str, provider: str, secret: str, origin: Origin) -> None:
        super().__init__(name, provider, secret, origin)
        self._polling: asyncio.Task[None] | None = None  # one for all calls that wait

    async def open(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Timeouts,
        client_key: str,
    ) -> HttpReply:
        """Send to the server, once it is there; the client's key stays here. See `ports.Engine.open`."""
        until = asyncio.get_running_loop().time() + timeouts.connect_s
        head = header_lines(headers)
        while True:
            try:
                reply = await self._origin.request(method, path, head, body, timeouts.connect_s)
            except UpstreamNotConnected:
                if await self._back(until):
                    continue
                raise UpstreamUnreachable(
                    f"engine {self.name} is down and was not back within {timeouts.connect_s:g} s; the limit is "
                    "timeouts.connect_s of the route, and the gateway's log says why it ended"
                ) from None
            if reply.status != _LOADING or not await self._back(until):
                return reply
            reply.abort()

    async def _back(self, until: float) -> bool:
        """Whether the server says that it is ready, before `until` by the loop's clock."""
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._until_ready())
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._polling)
        except TimeoutError:
            return False
        return True

    async def _until_ready(self) -> None:
        await asyncio.sleep(_POLL_S)
        while not await self.ready():  # noqa: ASYNC110 - what another process does, no event tells
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Drop all connections."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        await super().close()

    async def ready(self) -> bool:
        """Whether the model is loaded and the server answers."""
        try:
            reply = await self._origin.request("GET", "/health", b"", b"", 1.0)
            await reply.read(10_000)
        except UpstreamError:
            return False
        return reply.status == 200
