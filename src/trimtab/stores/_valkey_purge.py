"""A purge as a command does it: raise the epoch, search the server, wait until no gateway's memory can know less."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from trimtab.errors import StoreError
from trimtab.stores._valkey_epoch import META, Epoch, advance
from trimtab.stores._valkey_link import Address, Link
from trimtab.stores._valkey_records import HEADER, PEEK_BYTES, PREFIX, head, is_meant
from trimtab.types import EVERYTHING, Selector

_KEYS: Final = 500  # looked at in one go
_STEP_S: Final = 30.0
_MARGIN_S: Final = 0.1
_FREED_S: Final = 0.5


async def purge(address: Address, what: Selector, lease_s: float) -> int:
    """Drop what is meant; returns how many records went. Raises StoreError: what had gone until then is gone.

    `lease_s` is how long gateways trust their memory without having asked for the epoch.
    """
    link = Link(address)
    await link.open()
    try:
        removed = 0
        try:
            epoch = await _within(advance(link, what))
        except StoreError:
            # A full server refuses every write but a deletion, so that has to come first.
            removed = await _sweep(link, what, None)
            await asyncio.sleep(_FREED_S)  # memory is given back in the background
            epoch = await _within(advance(link, what))
        known_s = time.monotonic()
        removed += await _sweep(link, what, epoch)
        await asyncio.sleep(max(0.0, known_s + lease_s + _MARGIN_S - time.monotonic()))
        return removed
    finally:
        await link.drop()


async def survey(address: Address) -> dict[str, int]:
    """Entries in the database, and the bytes that the whole server uses. Raises StoreError."""
    link = Link(address)
    await link.open()
    try:
        return figures(await _within(link.ask(*SURVEY)))
    finally:
        await link.drop()


SURVEY: Final = (("DBSIZE",), ("EXISTS", *META), ("INFO", "memory"))


def figures(replies: Sequence[Any]) -> dict[str, int]:
    """What the replies to `SURVEY` say; those refused count as zero."""
    count, meta, info = replies
    used = 0
    if isinstance(info, bytes):
        used = next((int(line[12:]) for line in info.split() if line.startswith(b"used_memory:")), 0)
    entries = count - meta if isinstance(count, int) and isinstance(meta, int) else 0
    return {"entries": entries, "bytes": used}


async def _within(work: Any) -> Any:
    try:
        async with asyncio.timeout(_STEP_S):
            return await work
    except TimeoutError:
        raise StoreError(f"no answer in {_STEP_S:.0f} s") from None


async def _sweep(link: Link, what: Selector, epoch: Epoch | None) -> int:
    """Delete what is meant; of everything, what belongs to another era than the epoch's."""
    removed, cursor = 0, b"0"
    while True:
        (reply,) = await _within(link.ask(("SCAN", cursor, "MATCH", PREFIX + b"*", "COUNT", _KEYS)))
        if isinstance(reply, Exception):
            raise StoreError(f"cannot be searched: {reply}")
        cursor, keys = reply
        if keys:
            dead = [key async for key in _dead(link, keys, what, epoch)]
            if dead:
                (gone,) = await _within(link.ask(("UNLINK", *dead)))
                if isinstance(gone, Exception):
                    raise StoreError(f"deletes nothing: {gone}")
                removed += gone
        if cursor in (b"0", 0):
            return removed


async def _dead(link: Link, keys: list[bytes], what: Selector, epoch: Epoch | None) -> Any:
    size = HEADER.size if what == EVERYTHING else PEEK_BYTES
    beginnings = await _within(link.ask(*(("GETRANGE", key, 0, size - 1) for key in keys)))
    for key, beginning in zip(keys, beginnings, strict=True):
        if beginning == b"":
            continue  # it went meanwhile
        if what == EVERYTHING:
            found = head(beginning)
            if found is None or epoch is None or found.era != epoch.era:
                yield key
            continue
        meant = is_meant(beginning, what)
        if meant is None:
            (whole,) = await _within(link.ask(("GET", key)))
            meant = is_meant(whole, what) is not False
        if meant:
            yield key
