"""Fitted models as bytes, and back: msgpack with a version, arrays as little-endian numbers; nothing is executed."""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import StoreError
from trimtab.routing import answers, features
from trimtab.routing.acceptance import Acceptance
from trimtab.routing.predictor import Predictor

FORMAT: Final = 1
_ARRAY: Final = 1  # msgpack extension
_MOST_NUMBERS: Final = 50_000_000
_KINDS: Final[dict[str, type[Any]]] = {"predictor": Predictor, "acceptance": Acceptance}
_TYPES: Final = ("<f4", "<f8")

Model = TypeVar("Model", Predictor, Acceptance)


class _File(msgspec.Struct, frozen=True):
    format: int
    kind: str
    features: int
    answers: int
    model: msgspec.Raw


class _Array(msgspec.Struct, frozen=True):
    kind: str
    shape: tuple[int, ...]
    data: bytes


def dumps(model: Predictor | Acceptance) -> bytes:
    """A fitted model as bytes."""
    kind = next(name for name, type_ in _KINDS.items() if isinstance(model, type_))
    body = msgspec.msgpack.encode(model, enc_hook=_pack)
    return msgspec.msgpack.encode(_File(FORMAT, kind, features.VERSION, answers.VERSION, msgspec.Raw(body)))


def loads(data: bytes, kind: type[Model]) -> Model:
    """The model again. Raises StoreError if the bytes are damaged, of another kind or of another version."""
    try:
        file = msgspec.msgpack.decode(data, type=_File)
        if (file.format, file.features, file.answers) != (FORMAT, features.VERSION, answers.VERSION):
            raise ValueError("it was made by another version of Trimtab; train it again")
        if _KINDS.get(file.kind) is not kind:
            raise ValueError(f"it is of kind {file.kind!r}")
        raw = msgspec.msgpack.decode(file.model, ext_hook=_unpack)
        model: Model = msgspec.convert(raw, kind)
        _check(model)
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"this is no routing model that can be used: {error}") from error
    return model


def _pack(value: Any) -> msgspec.msgpack.Ext:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} cannot be stored")
    kind = "<f4" if value.dtype == np.float32 else "<f8"
    return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(_Array(kind, value.shape, value.astype(kind).tobytes())))


def _unpack(code: int, data: memoryview) -> NDArray[Any]:
    array = msgspec.msgpack.decode(bytes(data), type=_Array)
    if code != _ARRAY or array.kind not in _TYPES or math.prod(array.shape) > _MOST_NUMBERS:
        raise ValueError("an array of an unknown kind")
    found: NDArray[Any] = np.frombuffer(array.data, array.kind).reshape(array.shape).copy()
    if np.isnan(found).any():
        raise ValueError("an array with values that are not numbers")
    return found


def _check(model: Predictor | Acceptance) -> None:
    """Raises ValueError if the arrays do not fit each other."""
    landmarks, squares, weights = model.model.landmarks, model.model.squares, model.model.weights
    if landmarks.ndim != 2 or not weights.shape == squares.shape == landmarks.shape[:1] or not len(weights):
        raise ValueError("landmarks and weights do not fit")
    scalings = [model.scaling] if isinstance(model, Predictor) else [model.answer, model.prompt, model.agreement]
    for one in scalings:
        if one is not None and (one.mean.ndim != 1 or one.mean.shape != one.scale.shape):
            raise ValueError("a scaling's arrays do not fit")
