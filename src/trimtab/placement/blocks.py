"""A prompt as hashes of its growing prefix, made from its bytes: no tokenizer is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from trimtab.errors import BadRequest

BLOCK_BYTES: Final = 1024  # some 250 tokens of English: 16 tokens would cost more to hash than they save
_HASH_BYTES: Final = 8  # among a million blocks two are taken for one with a chance of 3e-8; a wrong hint, no more
_END: Final = b"\0"  # of a part; JSON has none


def prefix_blocks(parts: Iterable[bytes], block_bytes: int = BLOCK_BYTES) -> tuple[int, ...]:
    """One number for each full block: equal numbers at a place mean equal bytes up to the end of that block.

    `parts` are what the engine puts into its prompt, in that order: the model's name, tools, messages. What follows the
    last full block is left out. 64-bit numbers, the same in every process. About 2 us a kilobyte.
    Raises BadRequest for a block of less than a byte.
    """
    if block_bytes < 1:
        raise BadRequest(f"a block of {block_bytes} bytes is too short; name at least one", param="block_bytes")
    chain = hashlib.sha1(usedforsecurity=False)
    found: list[int] = []
    room = block_bytes
    for part in parts:
        rest = memoryview(part + _END)
        while len(rest) >= room:
            chain.update(rest[:room])
            found.append(int.from_bytes(chain.copy().digest()[:_HASH_BYTES], "big"))
            rest, room = rest[room:], block_bytes
        chain.update(rest)
        room -= len(rest)
    return tuple(found)
