"""What the workers of one gateway tell each other: datagrams over sockets in the data folder. Lost ones are no harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

_log = logging.getLogger("trimtab")

_LONGEST_BYTES: Final = 60_000
_LOOK_EVERY: Final = 200  # messages between two looks at who is there


class Neighbours:
    """One worker's end. `hear` gets what the others tell; it belongs to one event loop."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{name}.tell"
        self._socket: socket.socket | None = None
        self._others: list[str] = []
        self._told = 0
        self.hear: Callable[[bytes], None] = lambda message: None

    def start(self) -> None:
        """Listen. Raises OSError."""
        self._path.unlink(missing_ok=True)
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        found.setblocking(False)
        found.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket = found
        asyncio.get_running_loop().add_reader(found, self._read)

    def tell(self, message: bytes) -> None:
        """Send to all others; what does not fit or arrive is lost."""
        if self._socket is None or len(message) > _LONGEST_BYTES:
            return
        if self._told % _LOOK_EVERY == 0:
            self._others = [str(path) for path in self._folder.glob("*.tell") if path != self._path]
        self._told += 1
        for other in self._others:
            with contextlib.suppress(OSError):
                self._socket.sendto(message, other)

    def stop(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self._socket.recv(_LONGEST_BYTES)
                try:
                    self.hear(message)
                except (msgspec.MsgspecError, ValueError) as error:
                    _log.warning("a worker told what cannot be read: %s", error)
