"""Properties of the configuration: what was shown loads again, and no text breaks the reader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import Config, check, effective, to_toml
from trimtab.config.problems import index_lines
from trimtab.config.schema import Server
from trimtab.config.tables import TABLES

ENV = {"HOME": "/home/somebody", "SECRET": "s"}


def read(text: str) -> tuple[Config | None, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.toml"
        file.write_bytes(text.encode(errors="surrogatepass"))
        config, problems = check(file, ENV)
        return config, [str(problem).removeprefix(f"{folder}/") for problem in problems]


names = st.from_regex(r"[a-z][a-z0-9._-]{0,7}", fullmatch=True)
model_names = st.from_regex(r"[a-z][a-z0-9._:/@+-]{0,11}", fullmatch=True)
seconds = st.floats(0.001, 600)
prices = st.one_of(
    st.fixed_dictionaries({"machine_hour": st.floats(0, 1000)}),
    st.fixed_dictionaries({"input_per_mtok": st.floats(0, 1000)}, optional={"output_per_mtok": st.integers(0, 9)}),
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A file without mistakes: later models fall back to earlier ones only, so that there is no circle."""
    http = {"kind": st.just("openai_http"), "base_url": st.just("http://127.0.0.1:1/v1"), "provider": st.text()}
    engine = st.one_of(
        st.fixed_dictionaries(http, optional={"api_key_env": st.just("SECRET"), "accept_any_model": st.just(True)}),
        st.fixed_dictionaries({"kind": st.just("llama_cpp")}),
    )
    several = st.dictionaries(names, engine, min_size=1, max_size=3)
    # Two embedded engines without a model of their own would both be called as the model that comes with them.
    engines = draw(several.filter(lambda found: sum(one["kind"] == "llama_cpp" for one in found.values()) < 2))
    models: dict[str, Any] = {}
    for name in draw(st.lists(model_names, unique=True, min_size=1, max_size=4)):
        models[name] = {"engine": draw(st.sampled_from(list(engines)))}
        if models and draw(st.booleans()):
            others = [other for other in models if other != name]
            models[name]["fallback"] = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        if draw(st.booleans()):
            models[name]["price"] = draw(prices)
    lever = st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "ttl_s": st.floats(1, 1e6)})
    route = st.fixed_dictionaries(
        {"model": st.sampled_from(list(models))},
        optional={
            "retries": st.integers(0, 10),
            "timeouts": st.fixed_dictionaries({}, optional={"connect_s": seconds, "idle_s": seconds}),
            "levers": st.fixed_dictionaries({"exact_cache": lever}),
        },
    )
    hashes = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
    owners = draw(st.dictionaries(names, hashes, max_size=2))
    return {
        "server": draw(
            st.fixed_dictionaries({}, optional={"port": st.integers(0, 65535), "workers": st.integers(1, 9)})
        ),
        "engines": engines,
        "models": models,
        "routes": draw(st.dictionaries(names, route, max_size=3)),
        "levers": draw(st.fixed_dictionaries({}, optional={"exact_cache": lever})),
        "keys": {
            name: {"hash": value, "tenant": name} for name, value in owners.items() if len(set(owners.values())) > 1
        },
        "prices": draw(st.dictionaries(model_names, prices, max_size=2)),
    }


@given(documents())
@settings(deadline=None, max_examples=60)
def test_what_is_in_effect_loads_again_as_the_same(document):
    config, problems = read(to_toml(document))
    assert config is not None, problems
    again, problems = read(to_toml(effective(config, whole_hashes=True)))
    assert again is not None, problems
    assert msgspec.structs.replace(again, source="") == msgspec.structs.replace(config, source="")


@given(documents())
@settings(deadline=None, max_examples=30)
def test_every_key_is_found_in_its_line(document):
    text = to_toml(document)
    lines = text.split("\n")
    for path, number in index_lines(text).items():
        assert path[-1] in lines[number - 1] or f"{path[-1]}." in lines[number - 1]


junk = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["openai_http"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=5), st.sampled_from(["kind", "engine", "hash", "levers", "timeouts", "price"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
known_keys = st.sampled_from([*TABLES, *Server.__struct_fields__])


@given(st.dictionaries(known_keys, st.dictionaries(st.one_of(known_keys, names), junk, max_size=3), max_size=4))
@settings(deadline=None, max_examples=150)
def test_junk_is_refused_with_places_and_nothing_else(document):
    config, problems = read(to_toml(without_none(document)))
    assert (config is None) == bool(problems)
    assert all(problem.startswith("t.toml:") for problem in problems)
    assert all(problem.isprintable() for problem in problems)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value if part is not None] if isinstance(value, list) else value


@given(st.one_of(st.text(), st.text(alphabet="[]{}\"'=.,#\n\\ ab1-", max_size=60)))
@settings(deadline=None, max_examples=150)
def test_any_text_is_read_or_refused(text):
    config, problems = read(text)
    assert (config is None) == bool(problems)


@given(st.lists(st.from_regex(r"x[a-z]{3,8}", fullmatch=True), unique=True, min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_as_many_mistakes_as_wrong_keys(keys):
    text = "[server]\n" + "".join(f"{key} = 1\n" for key in keys)
    _, problems = read(text)
    assert [problem.split(": ")[0] for problem in problems] == [f"t.toml:{n + 2}" for n in range(len(keys))]
