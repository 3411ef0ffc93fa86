"""Captured traffic as a trace: what a gateway's clients sent, in their order and at their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trimtab.errors import BadRequest
from trimtab.measure.traces import Trace, Traced
from trimtab.stores.captures_db import Reader
from trimtab.stores.sealing import Keyring
from trimtab.types import Dialect

KIND = "captured"


def read(path: Path, keys: Keyring, where: Mapping[str, str | None]) -> Trace:
    """The captured requests whose columns equal `where` (None: any); those that are not OpenAI's are only counted.

    Raises BadRequest for no such file, a key that does not fit, or nothing that could be sent.
    """
    found: list[Traced] = []
    others = 0
    start: float | None = None
    with Reader(path) as reader:
        for row in reader.rows(where):
            if row.dialect != Dialect.OPENAI:
                others += 1
                continue
            start = row.at if start is None else start
            body = keys.open(row.key_id, row.body, row.id)
            found.append(Traced(row.at - start, body=msgspec.Raw(body)))
    if not found:
        said = f"; {others:,} are in Anthropic's dialect, which replay does not speak" if others else ""
        raise BadRequest(f"{path} holds no captured request that can be sent{said}", param="trace")
    return Trace(KIND, tuple(found), other_dialect=others)
