"""Eval runs: kept, continued, compared; verdicts, and what they stand behind; a judge's trial."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config import OPENAI

from trimtab import config as configuration
from trimtab.errors import BadRequest
from trimtab.evals import compare, gates, trial, verdicts
from trimtab.evals.html import render
from trimtab.evals.runs import Answered, Head, Run, RunFile, read
from trimtab.quality.verdict import GateTerms, Ruling
from trimtab.types import Scope


def head(config: str = "one", **changes: object) -> Head:
    base = Head("basics", "0" * 64, config, "", "http://127.0.0.1:1/v1", "m", 0, "0.1.0", "Linux", 1e9)
    return msgspec.structs.replace(base, **changes)


def answered(n: int, score: float, stratum: str = "s", repeat: int = 0) -> Answered:
    return Answered(f"i{n}", stratum, score, "why", f"text {n} {score}", repeat)


def run_of(scores: list[float], config: str = "one", **changes: object) -> Run:
    rows = [answered(n, score) for n, score in enumerate(scores)]
    return Run(head(config, **changes), {(row.item, row.repeat): row for row in rows})


class TestRunFile:
    def test_goes_on_where_it_was_killed(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "run.jsonl"
        with RunFile(path, head(), fresh=False) as file:
            file.add(answered(1, 1.0))
            file.add(answered(2, 0.0))
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"k":"answer","item":"i3","str')
        with RunFile(path, head(at=2e9), fresh=False) as file:
            assert list(file.answers) == [("i1", 0), ("i2", 0)]
            assert file.head.at == 1e9
            file.add(answered(3, 0.5))
        assert [row.score for row in read(path).answers.values()] == [1.0, 0.0, 0.5]

    @pytest.mark.parametrize("change", [{"suite_sha256": "1" * 64}, {"model": "n"}, {"seed": 1}, {"settings": "x"}])
    def test_is_never_continued_as_another(self, tmp_path: Path, change: dict[str, object]) -> None:
        path = tmp_path / "run.jsonl"
        with RunFile(path, head(), fresh=False) as file:
            file.add(answered(1, 1.0))
        with pytest.raises(BadRequest, match=next(iter(change))):
            RunFile(path, head(**change), fresh=False)
        with RunFile(path, head(**change), fresh=True) as file:
            assert not file.answers

    def test_a_file_of_something_else_is_named_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        path.write_bytes(msgspec.json.encode(head()) + b'\n{"k":"answer"}\n')
        with pytest.raises(BadRequest, match="line 2"):
            read(path)
        path.write_bytes(b"")
        with pytest.raises(BadRequest, match="no eval run"):
            read(path)


class TestComparison:
    def test_scores_have_intervals_and_losses_are_paired(self) -> None:
        found = compare.table([run_of([1.0] * 50 + [0.0] * 50), run_of([1.0] * 40 + [0.0] * 60, "two")])
        first, second = found.strata["s"]
        assert first is not None
        assert second is not None
        assert (first.score, second.score) == (0.5, 0.4)
        assert first.low < 0.5 < first.high
        assert second.loss == pytest.approx(0.1)
        assert second.loss_low is not None
        assert second.loss_high is not None
        assert 0 < second.loss_low < 0.1 < second.loss_high

    @given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
    def test_an_interval_holds_its_score(self, scores: list[float]) -> None:
        (cell,) = compare.table([run_of(scores)]).strata["s"]
        assert cell is not None
        assert 0 <= cell.low <= cell.score <= cell.high <= 1

    def test_changes_come_worst_first(self) -> None:
        before, after = run_of([1.0, 1.0, 0.0, 0.5]), run_of([0.0, 0.5, 1.0, 0.5], "two")
        assert [(one.item, one.loss) for one in compare.changed(before, after)] == [("i0", 1), ("i1", 0.5), ("i2", -1)]

    def test_runs_of_different_suites_are_not_compared(self) -> None:
        with pytest.raises(BadRequest, match="different suites"):
            compare.table([run_of([1.0]), run_of([1.0], "two", suite_sha256="1" * 64)])

    def test_the_report_holds_what_models_said_as_text(self) -> None:
        bad = Answered("i0", "s", 0.0, "<b>why</b>", "<script>alert(1)</script>")
        after = Run(head("two"), {("i0", 0): bad})
        page = render(compare.table([run_of([1.0]), after]), [run_of([1.0]), after])
        assert "<script>" not in page
        assert "&lt;script&gt;alert(1)" in page


class TestVerdicts:
    def test_fail_undecided_pass(self) -> None:
        good = [1.0] * 60 + [0.0] * 60
        bad = [0.0] * 30 + [1.0] * 30 + [0.0] * 60
        for scores, ruling in ((good, Ruling.PASS), (bad, Ruling.FAIL), ([*good[:2], 0.0, *good[3:]], None)):
            found = verdicts.of_runs(run_of(good), run_of(scores, "two"), GateTerms(), 1e9)
            if ruling is not None:
                assert found.verdict.ruling is ruling
            assert msgspec.json.decode(verdicts.as_json(found), type=verdicts.VerdictFile) == found

    def test_a_run_that_lacks_items_gets_no_verdict(self) -> None:
        with pytest.raises(BadRequest, match="did not answer the same items"):
            verdicts.of_runs(run_of([1.0, 0.0]), run_of([1.0], "two"), GateTerms(), 1e9)


STATIC = """
[levers.semantic_cache]
mode = "static"
threshold = {threshold}
verdict = "verdict.json"
{more}
"""
OFF = '[levers.semantic_cache]\nmode = "off"\n'


class TestGate:
    def gate(self, tmp_path: Path, *, judged: str, ruling_scores: list[float], **changes: object) -> gates.Verdicts:
        good = [1.0] * 60 + [0.0] * 60
        candidate = run_of(ruling_scores, "two", settings=judged, **changes)
        found = verdicts.of_runs(run_of(good, settings=OFF), candidate, GateTerms(), 1e9)
        (tmp_path / "verdict.json").write_bytes(verdicts.as_json(found))
        file = tmp_path / "trimtab.toml"
        file.write_text(STATIC.format(threshold=0.9, more=""))
        return gates.Verdicts(configuration.load(file, {}), "semantic_cache")

    GOOD = [1.0] * 60 + [0.0] * 60
    SAME = STATIC.format(threshold=0.9, more='gate = "advisory"')

    def test_a_verdict_on_these_settings_model_and_versions_lets_it_answer(self, tmp_path: Path) -> None:
        gate = self.gate(tmp_path, judged=self.SAME, ruling_scores=self.GOOD, prompt_version="7")
        assert gate.why_not(Scope("t", prompt_version="7"), "m") == ""
        assert "prompt version" in gate.why_not(Scope("t"), "m")
        assert "policy version" in gate.why_not(Scope("t", prompt_version="7", policy_version="2"), "m")
        assert "model" in gate.why_not(Scope("t", prompt_version="7"), "other")

    def test_nothing_else_does(self, tmp_path: Path) -> None:
        other = STATIC.format(threshold=0.8, more="")
        assert "other settings" in self.gate(tmp_path, judged=other, ruling_scores=self.GOOD).why_not(Scope("t"), "m")
        assert "other settings" in self.gate(tmp_path, judged="", ruling_scores=self.GOOD).why_not(Scope("t"), "m")
        bad = self.gate(tmp_path, judged=self.SAME, ruling_scores=[0.0] * 120)
        assert "says fail" in bad.why_not(Scope("t"), "m")
        elsewhere = self.gate(tmp_path, judged=self.SAME, ruling_scores=self.GOOD, route="bot")
        assert "route 'bot'" in elsewhere.why_not(Scope("t"), "m")
        (tmp_path / "verdict.json").unlink()
        missing = gates.Verdicts(configuration.load(tmp_path / "trimtab.toml", {}), "semantic_cache")
        assert "cannot be read" in missing.why_not(Scope("t"), "m")

    def test_what_was_trained_anew_was_not_judged(self, tmp_path: Path) -> None:
        self.gate(tmp_path, judged=self.SAME, ruling_scores=self.GOOD)
        made = tmp_path / "own.router"
        made.write_bytes(b"")
        config = configuration.load(tmp_path / "trimtab.toml", {})
        found = gates.Verdicts(config, "semantic_cache", lambda _: made)
        assert "own.router is younger" in found.why_not(Scope("t"), "m")
        os.utime(made, (0, 0))
        assert gates.Verdicts(config, "semantic_cache", lambda _: made).why_not(Scope("t"), "m") == ""


class TestGateOfAnExperiment:
    def test_its_verdict_is_of_the_candidate_and_not_of_who_gets_it(self, tmp_path: Path) -> None:
        models = f'{OPENAI}\n[models.large]\nengine = "openai"\n[models.small]\nengine = "openai"\n'
        split = '[levers.ab]\nmodel = "{model}"\nshare = {share}\nby = "{by}"\nverdict = "verdict.json"\n'
        judged = models + split.format(model="small", share=1.0, by="request") + 'gate = "advisory"\n'
        scores = [1.0] * 60 + [0.0] * 60
        candidate = run_of(scores, "small", settings=judged, model="large")
        found = verdicts.of_runs(run_of(scores, settings=models, model="large"), candidate, GateTerms(), 1e9)
        (tmp_path / "verdict.json").write_bytes(verdicts.as_json(found))

        def gate(model: str) -> gates.Verdicts:
            (tmp_path / "t.toml").write_text(models + split.format(model=model, share=0.1, by="user"))
            return gates.Verdicts(configuration.load(tmp_path / "t.toml", {}), "ab")

        assert gate("small").why_not(Scope("t"), "large") == ""
        assert "model" in gate("small").why_not(Scope("t"), "medium")
        assert "other settings" in gate("large").why_not(Scope("t"), "large")


class TestFresh:
    """A pass that switches a lever on again."""

    PASS = [1.0] * 60 + [0.0] * 60
    AB = '{openai}\n[models.small]\nengine = "openai"\n[routes.faq.levers.ab]\nmodel = "small"\n'

    def fresh(self, tmp_path: Path, ruling_scores: list[float] = PASS, off_since: float = 0.9e9, **changes: Any) -> str:
        text = self.AB.format(openai=OPENAI)
        candidate = run_of(ruling_scores, "small", **({"settings": text, "route": "faq", "at": 1e9} | changes))
        found = verdicts.of_runs(run_of(self.PASS, settings=OPENAI), candidate, GateTerms(), 2e9)
        path = tmp_path / "verdict-small.json"
        path.write_bytes(verdicts.as_json(found))
        (tmp_path / "trimtab.toml").write_text(text)
        return gates.fresh(path, configuration.load(tmp_path / "trimtab.toml", {}), "ab", "faq", off_since)

    def test_a_pass_says_its_file_and_its_hash(self, tmp_path: Path) -> None:
        said = self.fresh(tmp_path)
        sha256 = hashlib.sha256((tmp_path / "verdict-small.json").read_bytes()).hexdigest()
        assert said.startswith(f"verdict-small.json (sha256 {sha256[:16]}) passed with m: within the margin")

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"ruling_scores": [0.0] * 120}, "the verdict says fail"),
            ({"settings": OPENAI}, "of other settings"),
            ({"route": ""}, "of the route ''"),
            ({"off_since": 1e9}, "before the lever was switched off"),  # the file is younger, its run is not
        ],
    )
    def test_nothing_else_does(self, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
        with pytest.raises(BadRequest, match=problem):
            self.fresh(tmp_path, **changes)


def labels(count: int) -> list[trial.Labelled]:
    return [trial.Labelled(f"q{n}", "one", "two", ("a", "b", "tie")[n % 3]) for n in range(count)]


def said(word: str) -> str:
    return json.dumps({"better": word})


class TestTrial:
    SWAPPED = {"a": "b", "b": "a", "tie": "tie"}  # noqa: RUF012

    def test_a_judge_that_knows_is_trusted(self, tmp_path: Path) -> None:
        found = labels(90)
        replies = [(said(one.better), said(self.SWAPPED[one.better])) for one in found]
        result = trial.outcome("knows", found, replies, trial.MIN_KAPPA, "0")
        assert (result.kappa, result.agreement, result.swapped_differs, result.trusted) == (1.0, 1.0, 0.0, True)
        path = trial.path_of(tmp_path, "knows")
        path.parent.mkdir()
        path.write_bytes(msgspec.json.encode(result))
        assert trial.trusted(tmp_path, "knows") == ""
        assert "no trial" in trial.trusted(tmp_path, "another")

    @pytest.mark.parametrize("word", ["a", "b", "tie", "nonsense"])
    def test_one_that_always_says_the_same_is_not(self, tmp_path: Path, word: str) -> None:
        found = labels(90)
        result = trial.outcome("lazy", found, [(said(word), said(word))] * 90, trial.MIN_KAPPA, "0")
        assert (result.kappa, result.trusted) == (0.0, False)
        assert result.swapped_differs == (1.0 if word in "ab" else 0.0)
        assert (result.first, result.second, result.unread) == (word == "a", word == "b", word == "nonsense")
        path = trial.path_of(tmp_path, "lazy")
        path.parent.mkdir()
        path.write_bytes(msgspec.json.encode(result))
        assert "agrees with labels by a kappa of 0.00" in trial.trusted(tmp_path, "lazy")

    def test_kappa_as_published(self) -> None:
        # Two raters of 50: both yes 20, both no 15, only the first yes 5, only the second 10.
        one = ["yes"] * 25 + ["no"] * 25
        other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
        assert trial.kappa(one, other) == pytest.approx(0.4)

    def test_labels_are_read_or_their_line_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.jsonl"
        path.write_bytes(b"\n".join(msgspec.json.encode(one) for one in labels(3)) + b"\n\n")
        assert trial.read_labels(path) == labels(3)
        path.write_bytes(path.read_bytes() + b'{"question": "q", "a": "x", "b": "y", "better": "c"}\n')
        with pytest.raises(BadRequest, match="line 5"):
            trial.read_labels(path)
        path.write_bytes(msgspec.json.encode(labels(1)[0]))
        with pytest.raises(BadRequest, match="one kind"):
            trial.read_labels(path)
        assert hashlib.sha256(path.read_bytes()).hexdigest()
