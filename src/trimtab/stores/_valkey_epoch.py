"""What was purged in a store that many gateways share, without comparing the clocks of machines.

The server holds an *epoch*: which start of the server it belongs to, a random *era*, and a number that each selective
purge raises by one. A full purge begins a new era; answers of another era are dead. So does a start of the server, for
what it has loaded from disk may be older than a purge; and so does an epoch that the server has evicted.

An answer is stamped with the newest epoch that its gateway knew when the question came. It is written only in a
transaction that fails if the epoch moved, after it was held against every purge since its stamp. A purge raises the
epoch first and searches afterwards: whatever was written before is found, whatever comes later was checked.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec

from trimtab.errors import StoreError
from trimtab.stores._valkey_link import Link
from trimtab.types import EVERYTHING, Selector, Stored

EPOCH: Final = b"trimtab:1:epoch"
PURGES: Final = b"trimtab:1:purges"
REPLACED: Final = b"trimtab:1:replaced"  # raised when a live answer was replaced
META: Final = (EPOCH, PURGES, REPLACED)
KEPT: Final = 256  # purges; an answer that is older than all of them is not written
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(Selector)
_TRIES: Final = 20

Stamp = tuple[bytes, int]
"""An era, and a number of selective purges in it."""


class Epoch(msgspec.Struct, frozen=True):
    """The epoch as the server holds it."""

    run_id: bytes
    era: bytes  # 16 hex digits
    number: int

    @property
    def raw(self) -> bytes:
        """Its bytes on the server."""
        return b"%b %b %d" % (self.run_id, self.era, self.number)

    @property
    def stamp(self) -> Stamp:
        """What answers bear."""
        return self.era, self.number


class Known(msgspec.Struct, frozen=True):
    """An epoch with its last purges, and the count of replacements."""

    epoch: Epoch
    purges: tuple[Selector, ...] = ()
    replaced: bytes | None = None

    def is_dead(self, stamp: Stamp, stored: Stored) -> bool:
        """Whether an answer to a question of that time must not be served."""
        era, number = stamp
        since = self.epoch.number - number
        if era != self.epoch.era or since > len(self.purges):
            return True
        return since > 0 and any(what.matches(stored) for what in self.purges[-since:])


def parse(raw: object) -> Epoch | None:
    """The epoch in the server's bytes, None if they hold none."""
    parts = raw.split(b" ") if isinstance(raw, bytes) else []
    if len(parts) != 3 or len(parts[1]) != 16 or not parts[2].isdigit():
        return None
    return Epoch(parts[0], parts[1], int(parts[2]))


def new_era(run_id: bytes) -> Epoch:
    """One that never was."""
    return Epoch(run_id, secrets.token_hex(8).encode(), 0)


async def settle(link: Link) -> Known:
    """The epoch of this server, begun anew where it has none or one of an earlier start. Raises StoreError."""
    for _ in range(_TRIES):
        *_, found = await link.ask(("MULTI",), ("GET", EPOCH), ("LRANGE", PURGES, 0, -1), ("GET", REPLACED), ("EXEC",))
        if not isinstance(found, list):
            raise StoreError(f"cannot be read: {found}")
        raw, purges, replaced = found
        epoch = parse(raw)
        if epoch is not None and epoch.run_id == link.run_id:
            records = purges if isinstance(purges, list) else []
            return Known(epoch, tuple(map(_selector, records)), replaced if isinstance(replaced, bytes) else None)
        await replace(link, raw, new_era(link.run_id))
    raise StoreError("others keep changing the epoch")


async def advance(link: Link, what: Selector) -> Epoch:
    """Raise the epoch for a purge; returns the new one. Raises StoreError."""
    for _ in range(_TRIES):
        before = (await settle(link)).epoch
        if what == EVERYTHING:
            after, record = new_era(link.run_id), None
        else:
            after, record = msgspec.structs.replace(before, number=before.number + 1), _ENCODE(what)
        if await replace(link, before.raw, after, record):
            return after
    raise StoreError("others keep purging at the same time; try again")


async def replace(link: Link, expected: object, epoch: Epoch, purge: bytes | None = None) -> bool:
    """Set the epoch if it still is what was expected; with `purge` the list grows by it, else it ends. StoreError."""
    _, now = await link.ask(("WATCH", EPOCH), ("GET", EPOCH))
    if not isinstance(expected, Exception) and now != expected:
        await link.ask(("UNWATCH",))
        return False
    log: tuple[Any, ...] = (("DEL", PURGES),)
    if purge is not None:
        log = (("RPUSH", PURGES, purge), ("LTRIM", PURGES, -KEPT, -1))
    replies = await link.ask(("MULTI",), ("SET", EPOCH, epoch.raw), *log, ("EXEC",))
    return was_executed(replies)


def was_executed(replies: list[Any]) -> bool:
    """Whether a transaction took place; False if what it watched had changed. Raises StoreError if it was refused."""
    result = replies[-1]
    for reply in (*replies, *(result if isinstance(result, list) else ())):
        if isinstance(reply, Exception):
            raise StoreError(f"refuses to write: {reply}")
    return result is not None


def _selector(raw: object) -> Selector:
    try:
        return _DECODER.decode(raw) if isinstance(raw, bytes) else EVERYTHING
    except msgspec.MsgspecError:
        return EVERYTHING
