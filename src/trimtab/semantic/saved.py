"""A promise's state as bytes: msgpack of one array that begins with a format number, numbers of rows as float32.

Everything that a ruling depends on is in it. Kept rows are float32 in memory already, and what is float64 there stays
so; a promise read back therefore rules as it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from trimtab.semantic.logistic import Calibrated, Logistic
from trimtab.semantic.rows import Rows32

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]

FORMAT: Final = 1


class Block(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Rows of `width` little-endian float32 numbers each, end to end."""

    width: Count
    data: bytes


class Model(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A `Calibrated`."""

    mean: list[float]
    scale: list[float]
    weights: list[float]
    bias: float
    slope: float
    shift: float


class Ladder(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A `Proof`, a number a rung."""

    labels: list[Count]
    wrong: list[Count]
    next_look: list[float]
    looks: list[Count]
    proven: list[bool]


class Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """A `Promise`: its attributes by name; `drawn` is how many random numbers it has used."""

    format: Literal[1] = FORMAT
    max_wrong: float
    requests: Count
    hits: Count
    audits: Count
    audited_wrong: Count
    alarms: Count
    drawn: Count
    unfitted: Count
    limit: float
    expected_wrong: float
    audits_expected: float
    hindsight: float
    since_alarm: Count | None
    watched: list[tuple[float, bool]]
    labels: Block
    recent: Block
    checked: Block
    model: Model | None
    proof: Ladder | None


_DECODER: Final = msgspec.msgpack.Decoder(Saved)


def encode(state: Saved) -> bytes:
    """The bytes; some 100 a label and 80 a recent request."""
    return msgspec.msgpack.encode(state)


def decode(data: bytes) -> Saved:
    """The state. Raises ValueError if the bytes are of another format, or none."""
    try:
        state = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a promise's state of format {FORMAT}: {error}") from error
    if not all(map(math.isfinite, (state.limit, state.expected_wrong, state.audits_expected, state.hindsight))):
        raise ValueError("a promise's state with sums that are not finite")
    return state


def block(rows: Rows32) -> Block:
    """Rows, shape (n, width), as bytes."""
    return Block(rows.shape[1], rows.astype("<f4").tobytes())


def rows(saved: Block) -> Rows32:
    """The rows again. Raises ValueError if the bytes are no whole rows of finite numbers."""
    if not saved.width and saved.data:
        raise ValueError("rows without a width")
    found = np.frombuffer(saved.data, "<f4").astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("rows with numbers that are not finite")
    return found.reshape(-1, saved.width) if saved.width else np.empty((0, 0), np.float32)


def model(calibrated: Calibrated) -> Model:
    """A model's numbers."""
    one = calibrated.model
    return Model(
        one.mean.tolist(), one.scale.tolist(), one.weights.tolist(), one.bias, calibrated.slope, calibrated.shift
    )


def calibrated(saved: Model, features: int) -> Calibrated:
    """The model again. Raises ValueError if it is not for rows of that many numbers."""
    lists: Sequence[list[float]] = (saved.mean, saved.scale, saved.weights)
    if any(len(one) != features for one in lists):
        raise ValueError(f"a model for other rows than those of {features} numbers")
    if not all(map(math.isfinite, (*saved.mean, *saved.scale, *saved.weights, saved.bias, saved.slope, saved.shift))):
        raise ValueError("a model with numbers that are not finite")
    mean, scale, weights = (np.array(one) for one in lists)
    return Calibrated(Logistic(mean, scale, weights, saved.bias), saved.slope, saved.shift)
