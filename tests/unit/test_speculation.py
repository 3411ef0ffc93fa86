"""Speculation on trial: what is compared, and when it is refused."""

import msgspec
import pytest
from click.testing import CliRunner

from trimtab.cli import main
from trimtab.config import load
from trimtab.errors import BadRequest, ConfigError
from trimtab.measure import speculation
from trimtab.measure.speculation import Sample, best, row


def samples(tpot_s, accepted=0, text="same", count=8):
    return [Sample(n, text, 0.1, tpot_s * 100, 100, 2 * accepted, accepted, 0.001) for n in range(count)]


def test_a_way_that_surely_gains_pays():
    plain, fast = samples(0.010), samples(0.005, accepted=80)
    found = row("ngram", "copy", plain, fast)
    assert found.pays
    assert found.gain == pytest.approx(2.0)
    assert (found.accepted_per_step, found.acceptance, found.identical) == (4.0, 0.5, 8)
    assert best([row("none", "copy", plain, plain), found]) == "ngram"


@pytest.mark.parametrize(
    ("tried", "why"),
    [
        (samples(0.005, accepted=30), "drafted tokens a step are right, under 0.5"),
        (samples(0.0099, accepted=80), "may be only 1.01 times as fast"),
        (samples(0.02, accepted=80), "may be only 0.50 times as fast"),
    ],
)
def test_what_does_not_pay_is_refused(tried, why):
    found = row("ngram", "chat", samples(0.010), tried)
    assert not found.pays
    assert why in found.reason
    assert best([found]) == "none"


def test_a_gain_that_noise_may_explain_is_none():
    tried = [*samples(0.004, 80, count=4), *samples(0.03, 80, count=4)]
    assert not row("ngram", "copy", samples(0.010), tried).pays


def test_answers_for_which_nothing_was_drafted_say_nothing_of_drafts():
    tried = [*samples(0.004, 80, count=4), *samples(0.01, count=12)]
    found = row("ngram_mod", "repeats", samples(0.010, count=16), tried)
    assert found.accepted_per_step == 4.0


def test_other_texts_are_counted_with_where_they_part():
    found = row("ngram", "copy", samples(0.01, text="abcd"), samples(0.005, 80, text="abXd"))
    assert (found.identical, found.differ_at) == (0, (2,) * 8)
    assert row("x", "copy", samples(0.01, text="ab"), samples(0.01, text="abc")).differ_at == (2,) * 8


def test_prompts_are_the_same_for_a_seed_and_never_twice():
    for workload in ("copy", "chat"):
        asked = speculation.prompts(workload, 12, 1)
        assert asked == speculation.prompts(workload, 12, 1) != speculation.prompts(workload, 12, 2)
        assert len(set(asked)) == 12


def test_repeats_are_asked_twice_and_not_before():
    asked = speculation.prompts("repeats", 10, 1)
    assert asked[:5] == asked[5:] and len(set(asked)) == 5
    assert not set(asked) & set(speculation.prompts("chat", 10, 1))


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert speculation.read_prompts(path) == ["a", "b"]
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(BadRequest, match="line 2"):
        speculation.read_prompts(path)
    path.write_text("\n")
    with pytest.raises(BadRequest, match="no prompts"):
        speculation.read_prompts(path)


def test_an_engine_that_does_not_clock_itself():
    with pytest.raises(BadRequest, match="timings"):
        speculation.sample(0, msgspec.json.encode({"choices": []}), None)


def test_an_unknown_workload():
    result = CliRunner().invoke(main, ["engine", "speculate-bench", "--workload", "nowhere"])
    assert result.exit_code != 0
    assert "no such workload" in result.output


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('speculation = "magic"', "one of"),
        ('speculation = "draft"', "draft_model: is missing"),
        ('speculation = "draft"\ndraft_model = "gone.gguf"', "there is no file"),
        ("draft_tokens = 0", "from 1 to 64"),
    ],
)
def test_mistakes_in_the_settings(tmp_path, settings, said):
    (tmp_path / "trimtab.toml").write_text(f'[engines.local]\nkind = "llama_cpp"\n{settings}\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "trimtab.toml", {"HOME": str(tmp_path)})
    assert said in str(caught.value)
