"""The generators of the shipped suites: they write what is shipped, and new samples of it share nothing with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch):
    """The folder of the generators, importable."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    for name in {*sys.modules} - before:
        if name.split(".")[0] in {"suites", "make_suites"}:
            del sys.modules[name]


def test_the_shipped_suites_are_what_the_generators_write(tools, tmp_path, monkeypatch):
    import make_suites

    shipped = make_suites.FOLDER
    monkeypatch.setattr(make_suites, "FOLDER", tmp_path)
    make_suites.main()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) == 9 + 6 + 2
    for file in files:
        assert (tmp_path / file).read_bytes() == (shipped / file).read_bytes(), file


def test_a_new_sample_has_no_prompt_of_the_shipped_one(tools):
    from suites import small_model

    sizes = {"copy": 600, "extract": 400, "forms": 600, "position": 600, "record": 600, "swap": 3000}
    old = {name: {row["prompt"] for row in rows} for name, rows in small_model.strata()}
    new = dict(small_model.new_sample("another", sizes))
    assert {name: len(rows) for name, rows in new.items()} == sizes
    for name, rows in new.items():
        asked = {(row["prompt"], row.get("system")) for row in rows}
        assert len(asked) == len({row["id"] for row in rows}) == sizes[name]
        assert not {prompt for prompt, _ in asked} & old[name]
        assert {json.dumps(row.get("examples")) for row in rows} <= {
            json.dumps(row.get("examples")) for row in dict(small_model.strata())[name]
        }
    assert dict(small_model.new_sample("a third", sizes))["copy"] != new["copy"]
