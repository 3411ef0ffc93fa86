"""Measuring semantic reuse on labelled text: streams of questions with classes, and pairs that are the same or not."""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest
from trimtab.measure.stats import quantile
from trimtab.semantic import pairs
from trimtab.semantic.bounds import share_upper
from trimtab.semantic.embed import Embedder
from trimtab.semantic.evidence import Query
from trimtab.semantic.groups import Memory
from trimtab.semantic.learner import CAPACITY, Learner
from trimtab.semantic.lexical import profile
from trimtab.semantic.promise import Terms

Mode = Literal["promise", "static"]

_POINTS = 20  # on the curve
_PRECISIONS = (0.8, 0.9, 0.95)


class Asked(msgspec.Struct, frozen=True):
    """One request of a stream. Two requests may share an answer exactly if their classes are equal."""

    text: str
    class_: str | int = msgspec.field(name="class")


class Pair(msgspec.Struct, frozen=True):
    """Two texts, and whether one's answer serves for the other."""

    a: str
    b: str
    same: bool | Literal[0, 1]


class Reuse(msgspec.Struct, frozen=True):
    """What a cache would have done with a stream.

    Shares are of 1: `wrong_share` of the hits, with its one-sided 95% Clopper-Pearson limit (`wrong_upper95`). The two
    `audited` figures are what the cache itself could know; `estimated_wrong` is its own sum. `lookup_ms` is the time of
    embedding and deciding, without learning. `curve` shows how the counts grew.
    """

    requests: int
    hits: int
    hit_rate: float
    wrong_hits: int
    wrong_share: float
    wrong_upper95: float
    audits: int
    audited_wrong: int
    estimated_wrong: float
    alarms: int
    opened_at: int | None
    lookup_ms: dict[str, float]
    curve: list[dict[str, float]]


class PairFigures(msgspec.Struct, frozen=True):
    """How well a score tells same pairs from others; `recall_at` is keyed by precision, 0 where it is never reached."""

    pairs: int
    same: int
    auc: float
    ap: float
    best_f1: float
    recall_at: dict[str, float]


def read_stream(path: Path) -> list[Asked]:
    """The requests of a JSONL file of {"text", "class"}, or of its .gz. Raises BadRequest naming the first bad line."""
    return list(_lines(path, Asked, '{"text": "...", "class": "..."}'))


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSONL file of {"a", "b", "same"}, or of its .gz. Raises BadRequest naming the first bad line."""
    return list(_lines(path, Pair, '{"a": "...", "b": "...", "same": true}'))


def _lines(path: Path, kind: type[Any], shape: str) -> Iterator[Any]:
    decoder = msgspec.json.Decoder(kind)
    count = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise BadRequest(
                        f"{path}, line {number}: {error}; a line should be {shape}", param="file"
                    ) from error
                count += 1
        except (OSError, EOFError) as error:
            raise BadRequest(f"{path} cannot be read: {error}", param="file") from error
    if not count:
        raise BadRequest(f"{path} has no lines; it should hold lines of {shape}", param="file")


def embed_one(text: str, accurate: Embedder, fast: Embedder) -> Query:
    """A text as the learner takes it."""
    vector = fast.embed([text])[0]
    return Query(profile(text), vector if accurate is fast else accurate.embed([text])[0], vector)


def run_promise(
    stream: Sequence[Asked],
    terms: Terms,
    embed: Callable[[str], Query],
    *,
    false_verdicts: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> Reuse:
    """Send a stream through a learner that sees no class but through its audits and its misses' comparisons.

    `false_verdicts` (0 to 1) of the verdicts are turned round, as a poor judge would. Deterministic but for the times.
    """
    first = embed(stream[0].text)
    learner = Learner(
        terms,
        accurate_dim=len(first.accurate),
        fast_dim=len(first.fast),
        capacity=min(CAPACITY, len(stream)),
    )
    rng = random.Random(terms.seed + 1)
    classes: dict[int, str | int] = {}
    tally = _Tally(len(stream))
    for asked in stream:
        began = time.perf_counter()
        look = learner.look(embed(asked.text))
        took_s = time.perf_counter() - began
        if look.hit and look.entry is not None:
            tally.hit(classes[look.entry] != asked.class_)
        if not look.hit or look.audit:
            same = {n: (classes[n] == asked.class_) != (rng.random() < false_verdicts) for n in look.compare}
            classes[learner.learn(look, same)] = asked.class_
        tally.done(took_s)
        tick()
    promise = learner.promise
    return tally.result(promise.audits, promise.audited_wrong, promise.wrong_estimate, promise.alarms)


def run_static(
    stream: Sequence[Asked], threshold: float, embed: Callable[[str], Query], tick: Callable[[], None] = lambda: None
) -> Reuse:
    """Send a stream through the usual cache: the nearest question's answer, if its cosine is at least `threshold`."""
    first = embed(stream[0].text)
    memory = Memory(len(stream), len(first.accurate), len(first.fast))
    classes: list[str | int] = []
    tally = _Tally(len(stream))
    for asked in stream:
        began = time.perf_counter()
        query = embed(asked.text)
        near, cosines = memory.nearest(query.accurate, 1)
        hit = len(near) > 0 and float(cosines[0]) >= threshold
        took_s = time.perf_counter() - began
        if hit:
            tally.hit(classes[int(near[0])] != asked.class_)
        else:
            memory.add(query.profile, query.accurate, query.fast, {})
            classes.append(asked.class_)
        tally.done(took_s)
        tick()
    return tally.result(0, 0, 0.0, 0)


class _Tally:
    def __init__(self, total: int) -> None:
        self._total = total
        self._requests = self._hits = self._wrong = 0
        self._opened_at: int | None = None
        self._took_s: list[float] = []
        self._curve: list[dict[str, float]] = []

    def hit(self, wrong: bool) -> None:
        self._hits += 1
        self._wrong += wrong
        if self._opened_at is None:
            self._opened_at = self._requests + 1

    def done(self, took_s: float) -> None:
        self._requests += 1
        self._took_s.append(took_s)
        if self._requests * _POINTS // self._total > (self._requests - 1) * _POINTS // self._total:
            self._curve.append({"requests": self._requests, "hits": self._hits, "wrong_hits": self._wrong})

    def result(self, audits: int, audited_wrong: int, estimated_wrong: float, alarms: int) -> Reuse:
        return Reuse(
            requests=self._requests,
            hits=self._hits,
            hit_rate=round(self._hits / max(self._requests, 1), 6),
            wrong_hits=self._wrong,
            wrong_share=round(self._wrong / max(self._hits, 1), 6),
            wrong_upper95=round(share_upper(self._wrong, self._hits), 6),
            audits=audits,
            audited_wrong=audited_wrong,
            estimated_wrong=round(estimated_wrong, 3),
            alarms=alarms,
            opened_at=self._opened_at,
            lookup_ms={
                name: round((quantile(self._took_s, q) or 0.0) * 1e3, 3) for name, q in (("p50", 0.5), ("p99", 0.99))
            },
            curve=self._curve,
        )


def score_pairs(
    found: Sequence[Pair], accurate: Embedder, fast: Embedder, tick: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """The generic pair model's log-odds for each pair, shape (len(found),)."""
    scores = []
    for pair in found:
        one, other = accurate.embed([pair.a])[0], accurate.embed([pair.b])[0]
        fast_one, fast_other = fast.embed([pair.a, pair.b])
        scores.append(
            pairs.logit(
                pairs.features(profile(pair.a), profile(pair.b), float(one @ other), float(fast_one @ fast_other))
            )
        )
        tick()
    return np.array(scores)


def judge_scores(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> PairFigures:
    """Figures of a score against the truth, both of shape (n,). Pairs of equal score are taken together.

    AUC is the Mann-Whitney statistic; AP the mean of precisions at each step of recall, as scikit-learn defines it.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], same[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    hits = np.cumsum(truth)[last].astype(np.float64)
    taken = (last + 1).astype(np.float64)
    positives, negatives = float(same.sum()), float((~same).sum())
    precision, recall = hits / taken, hits / max(positives, 1.0)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    steps = np.diff(np.append(0.0, recall))
    false = np.append(0.0, (taken - hits) / max(negatives, 1.0))
    auc = float(np.sum(np.diff(false) * (np.append(0.0, recall)[:-1] + recall) / 2)) if positives and negatives else 0.5
    at = {f"{wanted:g}": round(float(recall[precision >= wanted].max(initial=0.0)), 4) for wanted in _PRECISIONS}
    return PairFigures(
        len(scores), int(positives), round(auc, 4), round(float(steps @ precision), 4), round(float(f1.max()), 4), at
    )


def as_mapping(result: Reuse | PairFigures) -> Mapping[str, Any]:
    """The figures as plain values."""
    return dict(msgspec.to_builtins(result))
