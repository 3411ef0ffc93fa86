"""One connection to a Valkey or Redis server: where it is, and commands in one write with their replies.

The client is valkey-py's connection without its pool: a connection that broke is never mended behind our back, because
a server that was started anew may have lost a purge, and has to be looked at first (`_valkey_epoch.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from trimtab.errors import BadRequest, StoreError

if TYPE_CHECKING:
    from valkey.asyncio.connection import Connection

_SCHEMES: Final = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_FORM: Final = 'write it like "valkey://127.0.0.1:6379/0" ("valkeys" for TLS)'
_CONNECT_S: Final = 1.0

Command = tuple[bytes | str | int, ...]


class Address(msgspec.Struct, frozen=True):
    """Where a server is. `shown` holds no secret."""

    host: str
    port: int
    database: int
    tls: bool
    user: str
    password: str
    shown: str


def parse_url(url: str) -> Address:
    """The address in a URL. Raises BadRequest, whose message does not show the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise BadRequest(f"is not the URL of a server; {_FORM}") from None
    database = parts.path.strip("/") or "0"
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
        raise BadRequest(f"is not the URL of a server; {_FORM}")
    if not re.fullmatch(r"[0-9]{1,5}", database):
        raise BadRequest(f"names a database that is no number; {_FORM}")
    host = parts.hostname
    shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}/{database}"
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Address(host, port, int(database), _SCHEMES[parts.scheme], user, password, shown)


def missing_package() -> str:
    """What has to be installed first, "" if nothing."""
    return "" if find_spec("valkey") is not None else "needs the package valkey; pip install 'trimtab[valkey]'"


class Link:
    """A connection. Not for two tasks at once; after any failure it is of no use and must be dropped."""

    def __init__(self, address: Address) -> None:
        """Raises StoreError if the client's package is not installed."""
        try:
            from valkey.asyncio.connection import Connection, SSLConnection
        except ImportError:
            raise StoreError(missing_package()) from None
        settings: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": address.database,
            "username": address.user or None,
            "password": address.password or None,
            "socket_timeout": None,  # ours are around whole exchanges
            "socket_connect_timeout": _CONNECT_S,
        }
        self._connection: Connection = (
            SSLConnection(**settings, ssl_check_hostname=True) if address.tls else Connection(**settings)
        )
        self.run_id = b""  # which start of the server answers here

    async def open(self) -> None:
        """Connect, within a second or two. Raises StoreError."""
        from valkey.exceptions import ValkeyError

        try:
            async with asyncio.timeout(2 * _CONNECT_S):
                await self._connection.connect()  # type: ignore[no-untyped-call]
                info, replication = await self.ask(("INFO", "server"), ("INFO", "replication"))
        except (ValkeyError, OSError, TimeoutError) as error:
            await self.drop()
            raise StoreError(_words(error)) from error
        except asyncio.CancelledError:
            await self.drop()
            raise
        found = re.search(rb"run_id:([0-9a-f]+)", info if isinstance(info, bytes) else b"")
        if found is None:
            await self.drop()
            raise StoreError(f"INFO does not say which start of the server this is ({info!r:.80})")
        if b"role:master" not in (replication if isinstance(replication, bytes) else b"role:master"):
            await self.drop()
            raise StoreError("is a replica, which may lack a purge; give the address of the primary")
        self.run_id = found[1]

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands in one write; their replies, a command's error as a value. Raises StoreError."""
        from valkey.exceptions import ResponseError, ValkeyError

        connection = self._connection
        if not connection.is_connected:
            raise StoreError("the connection is closed")
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
        except (ValkeyError, OSError, TimeoutError) as error:
            raise StoreError(_words(error)) from error
        return replies

    async def drop(self) -> None:
        """Close at once, whatever was still to be sent. Idempotent."""
        from valkey.exceptions import ValkeyError

        writer = getattr(self._connection, "_writer", None)
        if writer is not None:
            writer.transport.abort()  # a mere close waits for a server that does not read
        with contextlib.suppress(ValkeyError, OSError):
            await self._connection.disconnect(nowait=True)


def _words(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
