"""`trimtab engine quantize` on small hand-made GGUF files: bytes, types, names, errors, and nothing half written."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trimtab.cli import main
from trimtab.engines.llama_cpp import ggml as kernels
from trimtab.engines.llama_cpp import gguf, quantize
from trimtab.engines.llama_cpp.ggml import Ggml
from trimtab.engines.llama_cpp.gguf import BY_NAME, Gguf, Tensor
from trimtab.engines.llama_cpp.mixes import FILE_TYPES, choose, file_type
from trimtab.errors import BadRequest, Unsupported

F32, UINT32, TEXT, ARRAY = 0, 4, 8, 9
RAMP = [float(n - 127) for n in range(0, 256, 8)]  # a block of 32 whose scale in Q8_0 is exactly 1


def packed_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def made(tensors: dict[str, tuple[tuple[int, ...], list[float]]], *, align: int = 32, **more: bytes) -> bytes:
    """A GGUF file of F32 tensors, written by hand."""
    metadata = {
        "general.architecture": struct.pack("<I", TEXT) + packed_text("llama"),
        "general.alignment": struct.pack("<II", UINT32, align),
        "general.file_type": struct.pack("<II", UINT32, 0),
        "llama.block_count": struct.pack("<II", UINT32, 2),
        "llama.attention.head_count": struct.pack("<II", UINT32, 8),
        "llama.attention.head_count_kv": struct.pack("<IIQII", ARRAY, UINT32, 2, 0, 2),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", ARRAY, TEXT, 2) + packed_text("a") + packed_text("é"),
        **more,
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(packed_text(key) + value for key, value in metadata.items())
    data = b""
    for name, (shape, values) in tensors.items():
        data += b"\0" * (-len(data) % align)
        head += packed_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, F32, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
    return head + b"\0" * (-len(head) % align) + data


TENSORS = {
    "token_embd.weight": ((32, 4), RAMP * 4),
    "blk.0.attn_norm.weight": ((32,), RAMP),
    "blk.0.attn_q.weight": ((256, 2), RAMP * 16),
    "blk.0.attn_v.weight": ((256, 2), RAMP * 16),
    "blk.0.ffn_down.weight": ((64, 3), RAMP * 6),
    "blk.1.odd.weight": ((48, 2), RAMP * 3),
    "blk.1.attn_v.bias": ((32, 2), RAMP * 2),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.v1.gguf"
    path.write_bytes(made(TENSORS))
    os.utime(path, ns=(0, 10**18))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["engine", "quantize", *map(str, arguments)])


def written(model: Path, types: str, *more: object) -> list[dict[str, Any]]:
    result = run(model, "--to", types, "--out", model.parent / "out", "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["files"]


def types_of(path: str) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in gguf.read(Path(path)).tensors}


def data_of(path: str, name: str) -> bytes:
    tensor = next(one for one in gguf.read(Path(path)).tensors if one.name == name)
    return Path(path).read_bytes()[tensor.offset :][: tensor.size_bytes]


# --- what is written ---


def test_values_are_those_of_the_format(model: Path) -> None:
    exact, half, small = written(model, "F32,F16,Q8_0")
    assert Path(exact["path"]).read_bytes()[-200:] == model.read_bytes()[-200:]
    assert data_of(half["path"], "token_embd.weight") == struct.pack("<128e", *RAMP * 4)
    assert (
        data_of(small["path"], "token_embd.weight")
        == (struct.pack("<e", 1) + bytes(struct.pack("<32b", *map(int, RAMP)))) * 4
    )
    assert data_of(small["path"], "blk.0.attn_norm.weight") == struct.pack("<32f", *RAMP)


def test_names_metadata_and_places(model: Path) -> None:
    one = written(model, "q8_0")[0]
    path = Path(one["path"])
    assert path == model.parent / "out" / "tiny.v1-Q8_0.gguf"
    assert one["bytes"] == path.stat().st_size
    before, after = gguf.read(model), gguf.read(path)
    assert after.number("general.file_type", -1) == 7
    changed = {"general.file_type", "general.quantization_version"}
    assert {key: value for key, value in after.metadata.items() if key not in changed} == {
        key: value for key, value in before.metadata.items() if key not in changed
    }
    assert [tensor.shape for tensor in after.tensors] == [tensor.shape for tensor in before.tensors]
    assert all(tensor.offset % 32 == 0 for tensor in after.tensors)
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name]


def test_an_alignment_of_its_own_is_kept(model: Path) -> None:
    model.write_bytes(made(TENSORS, align=128))
    path = Path(written(model, "Q8_0")[0]["path"])
    assert all(tensor.offset % 128 == 0 for tensor in gguf.read(path).tensors)
    assert path.stat().st_size % 128 == 0
    assert data_of(str(path), "blk.0.attn_norm.weight") == struct.pack("<32f", *RAMP)


def test_rows_that_do_not_fill_blocks_fall_back(model: Path) -> None:
    one = written(model, "Q2_K")[0]
    assert types_of(one["path"]) == {
        "token_embd.weight": "Q8_0",  # also the output: Q6_K if its rows were longer
        "blk.0.attn_norm.weight": "F32",
        "blk.0.attn_q.weight": "Q2_K",
        "blk.0.attn_v.weight": "Q4_K",  # four query heads share one of them
        "blk.0.ffn_down.weight": "Q4_0",
        "blk.1.odd.weight": "F16",
        "blk.1.attn_v.bias": "F32",
    }
    assert one["fallbacks"] == 3
    assert one["fallbacks_by_type"] == {"Q2_K as F16": 1, "Q3_K as Q4_0": 1, "Q6_K as Q8_0": 1}


@pytest.mark.parametrize("kind", [kind for kind, known in FILE_TYPES.items() if known.base.block > 1])
def test_each_type_can_be_written_and_read_again(model: Path, kind: str) -> None:
    values = [math.sin(n) for n in range(512)]
    model.write_bytes(made({"blk.0.ffn_up.weight": ((256, 2), values)}))
    small = written(model, kind)[0]
    back = written(Path(small["path"]), "F32")[0]["path"]
    found = struct.unpack("<512f", data_of(back, "blk.0.ffn_up.weight"))
    worst = max(abs(a - b) for a, b in zip(found, values, strict=True))
    assert types_of(small["path"]) == {"blk.0.ffn_up.weight": FILE_TYPES[kind].base.name}
    assert 0 < worst < 1.5 / 2 ** (int(kind.lstrip("IQ")[0]) - 1)


def test_a_tensor_that_has_its_type_already_is_copied(model: Path) -> None:
    small = Path(written(model, "Q4_1")[0]["path"])
    again = written(small, "Q4_1")[0]["path"]
    assert Path(again).read_bytes() == small.read_bytes()


def test_pieces_join_seamlessly(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [Path(one["path"]).read_bytes() for one in written(model, "Q8_0,Q2_K")]
    monkeypatch.setattr(quantize, "_PIECE_VALUES", 1)
    assert [Path(one["path"]).read_bytes() for one in written(model, "Q8_0,Q2_K", "--force")] == whole


def test_the_mix_of_a_large_model_is_llama_cpps() -> None:
    layers = 32
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts]
    norms = [Tensor(f"blk.{n}.norm.weight", (4096,), BY_NAME["F32"], 0) for n in range(2 * layers + 1)]
    tables = [Tensor(name, (4096, 4096), BY_NAME["F16"], 0) for name in ("token_embd.weight", "output.weight", *names)]
    metadata = {
        "general.architecture": struct.pack("<I", TEXT) + packed_text("llama"),
        "llama.block_count": struct.pack("<II", UINT32, layers),
    }
    model = Gguf(Path(), metadata, (*tables, *norms))

    def counts(kind: str) -> dict[str, int]:
        return Counter(choice.type.name for choice in choose(file_type(kind), model))

    # The first is what llama.cpp prints when it loads Llama 2 7B; the others follow from its rules.
    assert counts("Q4_K_M") == {"F32": 65, "Q4_K": 193, "Q6_K": 33}
    assert counts("Q2_K") == {"F32": 65, "Q2_K": 129, "Q3_K": 96, "Q6_K": 1}
    assert counts("Q4_K_S") == {"F32": 65, "Q4_K": 217, "Q5_K": 8, "Q6_K": 1}
    assert counts("Q3_K_M") == {"F32": 65, "Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}
    assert counts("Q4_0") == {"F32": 65, "Q4_0": 225, "Q6_K": 1}
    assert counts("Q8_0") == {"F32": 65, "Q8_0": 226}


# --- what is there already ---


def test_a_whole_file_is_used_again_until_force_or_a_newer_model(model: Path) -> None:
    def identity(more: tuple[str, ...] = ()) -> tuple[bool, int]:
        one = written(model, "Q8_0", *more)[0]
        return one["reused"], Path(one["path"]).stat().st_mtime_ns

    first = identity()
    assert identity() == (True, first[1])
    assert identity(("--force",))[0] is False
    path = model.parent / "out" / "tiny.v1-Q8_0.gguf"
    for spoil in (
        lambda: os.truncate(path, 100),
        lambda: os.utime(path, ns=(0, 0)),
        lambda: path.write_bytes(b"x" * path.stat().st_size),
    ):
        spoil()
        assert identity()[0] is False
        assert identity()[0] is True


def test_what_a_killed_process_left_is_overwritten(model: Path) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / ".tiny.v1-Q8_0.gguf.part").write_bytes(b"x" * 99_999)
    assert data_of(written(model, "Q8_0")[0]["path"], "blk.0.attn_norm.weight") == struct.pack("<32f", *RAMP)
    assert [found.name for found in out.iterdir()] == ["tiny.v1-Q8_0.gguf"]


# --- nothing half written ---


def folder_after(model: Path, *, exit_code: int, said: str) -> list[str]:
    result = run(model, "--to", "Q8_0", "--out", model.parent / "out")
    assert result.exit_code == exit_code, result.output
    assert said in result.output
    return [found.name for found in (model.parent / "out").iterdir()]


def test_a_disk_that_fills_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantize.os, "fsync", full)
    assert folder_after(model, exit_code=1, said="No space left on device): make room, or name another") == []


def test_a_disk_that_is_full_is_said_before_the_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert folder_after(model, exit_code=1, said="0 MB are free in") == []


def test_ctrl_c(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ggml, "convert", interrupted)
    assert folder_after(model, exit_code=1, said="Aborted!") == []


def test_sigterm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = Ggml.convert

    def ended(*arguments: Any) -> bytes:
        os.kill(os.getpid(), signal.SIGTERM)
        return convert(*arguments)

    monkeypatch.setattr(Ggml, "convert", ended)
    assert folder_after(model, exit_code=143, said="Writing") == []


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_model_that_holds_what_no_model_can(model: Path, odd: float) -> None:
    model.write_bytes(made({"blk.0.attn_q.weight": ((32, 2), [odd, *RAMP[1:], *RAMP])}))
    assert folder_after(model, exit_code=1, said="blk.0.attn_q.weight holds numbers that are not finite") == []


def test_numbers_too_large_for_the_type(model: Path) -> None:
    model.write_bytes(made({"blk.0.attn_q.weight": ((32, 2), [1e30, *RAMP[1:], *RAMP])}))
    assert folder_after(model, exit_code=1, said="or too large for Q8_0") == []


def test_another_process_that_writes_it(model: Path) -> None:
    out = model.parent / "out"
    out.mkdir()
    with (out / ".tiny.v1-Q8_0.gguf.part").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert folder_after(model, exit_code=1, said="another process is writing") == [".tiny.v1-Q8_0.gguf.part"]


# --- what is wrong, and the way out ---


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ("Q9_0", "unknown type 'Q9_0'; there are: F32, F16, BF16, Q8_0"),
        ("Q8_0,", "unknown type ''"),
        ("", "unknown type"),
    ],
)
def test_unknown_types(model: Path, types: str, said: str) -> None:
    result = run(model, "--to", types)
    assert (result.exit_code, said in result.stderr) == (1, True)


def test_no_such_model(tmp_path: Path) -> None:
    result = run(tmp_path / "none.gguf", "--to", "Q8_0")
    assert result.exit_code == 1
    assert "none.gguf: name a .gguf file, or smollm2-135m-instruct" in result.stderr


WHOLE = made(TENSORS)
PART = struct.pack("<II", UINT32, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no GGUF file"),
        (b"PK\3\4" * 100, "is no GGUF file"),
        (WHOLE[:20], "is no whole GGUF file"),
        (WHOLE[:200], "is no whole GGUF file"),
        (WHOLE[:-1], "it ends before the data of blk.1.attn_v.bias"),
        (WHOLE[:4] + b"\1" + WHOLE[5:], "version 1"),
        (WHOLE[:4] + b"\0\0\0\3" + WHOLE[8:], "little-endian"),
        (WHOLE.replace(struct.pack("<QQI", 48, 2, F32), struct.pack("<QQI", 48, 2, 99)), "(ggml's number 99)"),
        (WHOLE.replace(struct.pack("<QQI", 48, 2, F32), struct.pack("<QQI", 48, 2, 2)), "do not fill blocks of Q4_0"),
        (WHOLE.replace(struct.pack("<QQI", 48, 2, F32), struct.pack("<QQI", 0, 2, F32)), "is empty"),
        (WHOLE.replace(struct.pack("<Q", len(TENSORS)), struct.pack("<Q", 1 << 60), 1), "is no whole GGUF file"),
        (made(TENSORS, align=24), "general.alignment is 24"),
        (made({}), "holds no tensors"),
        (made(TENSORS, **{"split.count": PART}), "one part of a model"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    result = run(tmp_path / "x.gguf", "--to", "Q8_0", "--out", tmp_path)
    assert (result.exit_code, said in result.stderr) == (1, True), result.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 37))
def test_a_cut_file_is_never_taken_for_a_whole_one(tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.gguf").write_bytes(WHOLE[:cut])
    with pytest.raises(BadRequest):
        gguf.read(tmp_path / "x.gguf")


def test_a_model_is_not_overwritten_by_itself(model: Path) -> None:
    model.with_name("tiny.v1-Q8_0.gguf").symlink_to(model)
    result = run(model, "--to", "Q8_0", "--out", model.parent)
    assert result.exit_code == 1
    assert "would overwrite the model that it is made from" in result.stderr


def test_what_is_no_better_is_said(model: Path) -> None:
    assert (
        "F32: not below the precision of tiny.v1.gguf" in run(model, "--to", "F32,Q8_0", "--out", model.parent).stderr
    )
    small = model.with_name("tiny.v1-Q8_0.gguf")
    said = run(small, "--to", "F16,Q4_0", "--out", model.parent).stderr
    assert "F16: not below the precision of tiny.v1-Q8_0.gguf" in said
    assert "Q4_0: tiny.v1-Q8_0.gguf is quantized itself (Q8_0" in said


def test_a_library_without_the_conversions(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_FROM_FLOATS", "ggml_of_another_world")
    with pytest.raises(Unsupported, match=r"does not export `ggml_of_another_world`.*pip install"):
        Ggml()


# --- what is printed ---


def test_the_table(model: Path) -> None:
    result = run(model, "--to", "Q8_0,Q2_K,Q8_0", "--out", model.parent / "out")
    assert result.stderr.splitlines() == ["Writing tiny.v1-Q8_0.gguf (0 MB)", "Writing tiny.v1-Q2_K.gguf (0 MB)"]
    lines, why = result.stdout.splitlines(), "tensors whose rows do not fill its blocks have larger types"
    assert lines[0].split() == ["type", "file", "MB", "bits/weight", "fallbacks", "seconds"]
    assert lines[1].split()[:2] == ["Q8_0", "tiny.v1-Q8_0.gguf"]
    assert "3 of 7" in lines[2]
    assert lines[3:] == [
        f"in {model.parent / 'out'}",
        f"Q8_0: {why}: 1 Q8_0 as F16",
        f"Q2_K: {why}: 1 Q2_K as F16, 1 Q3_K as Q4_0, 1 Q6_K as Q8_0",
    ]
    again = run(model, "--to", "Q8_0", "--out", model.parent / "out")
    assert "was there" in again.stdout
    assert again.stderr == ""


def test_the_default_folder_is_in_the_cache(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE_DIR", str(model.parent / "cache"))
    assert run(model, "--to", "Q8_0").exit_code == 0
    assert (model.parent / "cache" / "quantized" / "tiny.v1-Q8_0.gguf").is_file()
