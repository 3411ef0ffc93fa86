"""Which type each tensor of a model gets in a file of a given kind: the mixes that llama.cpp's quantizer makes.

A file called Q4_K_M is mostly Q4_K; where rounding hurts most it has better types. Not kept are llama.cpp's special
cases for Falcon, for Llama 70B and for models with eight experts, and there is no importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimtab.engines.llama_cpp.gguf import BY_NAME, COPIED_ONLY, Gguf, Tensor, Type
from trimtab.errors import BadRequest


@dataclass(frozen=True)
class FileType:
    """A kind of file: its number in `general.file_type`, and the type that most of its tensors have."""

    name: str
    number: int
    base: Type


FILE_TYPES: Final = {
    name: FileType(name, number, BY_NAME[base])
    for name, number, base in (
        ("F32", 0, "F32"), ("F16", 1, "F16"), ("BF16", 32, "BF16"), ("Q8_0", 7, "Q8_0"), ("Q6_K", 18, "Q6_K"),
        ("Q5_K_M", 17, "Q5_K"), ("Q5_K_S", 16, "Q5_K"), ("Q5_1", 9, "Q5_1"), ("Q5_0", 8, "Q5_0"),
        ("Q4_K_M", 15, "Q4_K"), ("Q4_K_S", 14, "Q4_K"), ("Q4_1", 3, "Q4_1"), ("Q4_0", 2, "Q4_0"),
        ("IQ4_NL", 25, "IQ4_NL"), ("IQ4_XS", 30, "IQ4_XS"),
        ("Q3_K_L", 13, "Q3_K"), ("Q3_K_M", 12, "Q3_K"), ("Q3_K_S", 11, "Q3_K"), ("Q2_K", 10, "Q2_K"),
    )
}  # fmt: skip
_SHORT: Final = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}

# Blocks of 256 values do not divide every row; blocks of 32 mostly do.
_SMALLER_BLOCKS: Final = {
    "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0", "IQ4_XS": "IQ4_NL",
}  # fmt: skip
_ANY_ROW: Final = "F16"

# Small tables that a model is sensitive to, by parts of their names: they stay as they are.
_KEPT: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w", "time_mix_v0", "time_mix_v1", "time_mix_v2", "time_mix_a", "time_mix_g1", "time_mix_g2",
    "time_mix_decay_w", "time_mix_lerp_fused.weight", "attn_rel_b.weight", "position_embd", "token_types.weight",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_LAYER: Final = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class _Place:
    """Where in the model a tensor stands. `sharing` is how many query heads use one key-value head."""

    layer: int
    layers: int
    sharing: int


_When = Callable[[_Place], bool]


def _always(place: _Place) -> bool:
    return True


def _many_share(place: _Place) -> bool:
    return place.sharing >= 4


def _spread(place: _Place) -> bool:
    """The first eighth, the last eighth, and each third layer between them."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


def _first(count: int) -> _When:
    return lambda place: place.layer < count


def _first_part(of: int) -> _When:
    return lambda place: place.layer < place.layers // of


_VALUES, _DOWN, _OUT = "values", "ffn_down", "attn_output.weight"
_VALUE_TENSORS: Final = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")

# Kind of file -> part of the model -> the first type whose condition holds.
_BETTER: Final[dict[str, dict[str, tuple[tuple[_When, str], ...]]]] = {
    "Q2_K": {
        _VALUES: ((_many_share, "Q4_K"), (_always, "Q3_K")),
        _DOWN: ((_always, "Q3_K"),),
        _OUT: ((_always, "Q3_K"),),
    },
    "Q3_K_M": {
        _VALUES: ((_first(2), "Q5_K"), (_always, "Q4_K")),
        _DOWN: ((_first_part(16), "Q5_K"), (_always, "Q4_K")),
        _OUT: ((_always, "Q4_K"),),
    },
    "Q3_K_L": dict.fromkeys((_VALUES, _DOWN, _OUT), ((_always, "Q5_K"),)),
    "Q4_K_S": {_VALUES: ((_first(4), "Q5_K"),), _DOWN: ((_first_part(8), "Q5_K"),)},
    "Q4_K_M": dict.fromkeys((_VALUES, _DOWN), ((_spread, "Q6_K"),)),
    "Q5_K_M": dict.fromkeys((_VALUES, _DOWN), ((_spread, "Q6_K"),)),
    "IQ4_NL": {_VALUES: ((_many_share, "Q5_K"),), _DOWN: ((_first_part(8), "Q5_K"),)},
    "IQ4_XS": {_VALUES: ((_many_share, "Q5_K"),), _DOWN: ((_first_part(8), "Q5_K"),)},
}


def file_type(name: str) -> FileType:
    """A kind of file by its name, in either case. Raises BadRequest, which lists all."""
    upper = name.strip().upper()
    found = FILE_TYPES.get(_SHORT.get(upper, upper))
    if found is None:
        raise BadRequest(f"unknown type {name.strip()!r}; there are: {', '.join(FILE_TYPES)}", param="to")
    return found


@dataclass(frozen=True)
class Choice:
    """The type that a tensor gets, and the one that it would have if its rows filled that one's blocks."""

    type: Type
    wanted: Type

    @property
    def is_fallback(self) -> bool:
        """Whether its rows did not."""
        return self.type is not self.wanted


def choose(kind: FileType, model: Gguf) -> tuple[Choice, ...]:
    """The type of each tensor, in the model's order."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    architecture = model.text("general.architecture")
    heads = model.number(f"{architecture}.attention.head_count", 1)
    sharing = heads // model.number(f"{architecture}.attention.head_count_kv", heads)
    layers = model.number(f"{architecture}.block_count", 0)

    def choice(tensor: Tensor) -> Choice:
        if not _is_rounded(tensor):
            return Choice(tensor.type, tensor.type)
        if kind.base.block == 1:
            return Choice(kind.base, kind.base)
        match = _LAYER.match(tensor.name)
        wanted = _wanted(kind, tensor.name, tied, _Place(int(match[1]) if match else 0, layers, sharing))
        return Choice(_that_fits(wanted, tensor.shape[0]), wanted)

    return tuple(choice(tensor) for tensor in model.tensors)


def _is_rounded(tensor: Tensor) -> bool:
    """Whether a tensor is one of the large tables; vectors and small tables stay as they are."""
    name, has_rows = tensor.name, any(length > 1 for length in tensor.shape[1:])
    if not has_rows or not name.endswith("weight") or tensor.type.name in COPIED_ONLY:
        return False
    return not any(part in name for part in _KEPT)


def _wanted(kind: FileType, name: str, tied: bool, place: _Place) -> Type:
    if name == "output.weight" or (tied and name in ("token_embd.weight", "per_layer_token_embd.weight")):
        return kind.base if kind.base.name == "Q8_0" else BY_NAME["Q6_K"]
    part = next((_VALUES for end in _VALUE_TENSORS if name.endswith(end)), "") or next(
        (part for part in (_DOWN, _OUT) if part in name), ""
    )
    rules = _BETTER.get(kind.name, {}).get(part, ())
    return next((BY_NAME[better] for holds, better in rules if holds(place)), kind.base)


def _that_fits(wanted: Type, row_values: int) -> Type:
    if row_values % wanted.block == 0:
        return wanted
    smaller = BY_NAME[_SMALLER_BLOCKS.get(wanted.name, wanted.name)]
    return smaller if row_values % smaller.block == 0 else BY_NAME[_ANY_ROW]
