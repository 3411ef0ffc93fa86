"""A promise that was saved goes on as if nothing had happened; and the rows that it keeps."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from trimtab.semantic.promise import CLOSED, Promise, Terms
from trimtab.semantic.rows import Rows

FEATURES = 3


def play(promise, requests, seed, harder_from=10**9):
    """Rulings on requests whose first number tells; from `harder_from` on they are wrong half the time."""
    rng = np.random.default_rng(seed)
    rulings = []
    for n in range(requests):
        strength = rng.normal(1.5, 2.0)
        values = np.array([strength + rng.normal(0, 0.1), *rng.normal(size=FEATURES - 1)])
        wrong = bool(rng.random() < max(1 / (1 + np.exp(strength)), 0.5 * (n >= harder_from)))
        rulings.append(ruling := promise.rule(values))
        if not ruling.hit or ruling.audit:
            promise.label(values, ruling, wrong)
    return rulings


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("asked", [0, 10, 70, 1400])
def test_a_saved_promise_rules_as_it_would_have_done(strict, asked):
    terms = Terms(0.1, audit=0.2, strict=strict, seed=5)
    promise = Promise(terms)
    play(promise, asked, 1)
    data = promise.save()
    again = Promise.load(terms, data, features=FEATURES if asked else None)
    assert again.save() == data
    expected = play(promise, 900, 2, harder_from=500)
    assert play(again, 900, 2, harder_from=500) == expected
    assert again.save() == promise.save()
    assert any(ruling.hit for ruling in expected) or strict
    assert (again.hits, again.audits, again.alarms) == (promise.hits, promise.audits, promise.alarms)


def test_state_after_an_alarm_is_kept():
    terms = Terms(0.1, audit=0.3)
    promise = Promise(terms)
    play(promise, 1000, 1)
    while not promise.alarms:
        play(promise, 10, promise.requests, harder_from=0)
    again = Promise.load(terms, promise.save())
    assert again.limit == promise.limit == CLOSED
    assert play(again, 1000, 7) == play(promise, 1000, 7)


def test_other_terms_keep_the_labels_and_find_the_limit_anew():
    promise = Promise(Terms(0.1))
    play(promise, 1000, 1)
    data = promise.save()
    assert promise.limit > 0
    tighter = Promise.load(Terms(0.01), data)
    assert tighter.limit < promise.limit
    assert tighter.hits == promise.hits
    assert Promise.load(Terms(0.1, strict=True), data).limit == CLOSED


def changed(data, place, value):
    parts = msgspec.msgpack.decode(data)
    parts[place] = value
    return msgspec.msgpack.encode(parts)


def test_other_data_is_refused():
    terms = Terms(0.1, strict=True)
    promise = Promise(terms)
    play(promise, 300, 1)
    data = promise.save()
    parts = msgspec.msgpack.decode(data)
    labels, recent, checked, model, proof = range(15, 20)
    nan = np.full(FEATURES + 3, np.nan, "<f4").tobytes()
    bad = (
        (changed(data, 0, 2), "format 1"),
        (b"", "format 1"),
        (data[:-1], "format 1"),
        (data + b"x", "format 1"),
        (changed(data, 2, -1), "format 1"),
        (changed(data, 9, float("nan")), "sums that are not finite"),
        (changed(data, labels, [FEATURES + 4, b"\0" * 4 * (FEATURES + 4)]), "3 and 4 numbers"),
        (changed(data, recent, [FEATURES + 2, b"\0" * 4 * (FEATURES + 2)]), "3 and 4 numbers"),
        (changed(data, labels, [FEATURES + 3, nan]), "not finite"),
        (changed(data, labels, [FEATURES + 3, b"1234"]), "reshape"),
        (changed(data, labels, [0, b"1234"]), "without a width"),
        (changed(data, checked, [2, b""]), "of 2 numbers, not of 3"),
        (changed(data, model, [[0.0], [1.0], [1.0], 0.0, 1.0, 0.0]), "a model for other rows"),
        (changed(data, model, [*parts[model][:3], float("inf"), 1.0, 0.0]), "not finite"),
        (changed(data, proof, [[1], [0], [1.0], [0], [False]]), "without 8 rungs"),
    )
    for case, why in bad:
        with pytest.raises(ValueError, match=why):
            Promise.load(terms, case)
    with pytest.raises(ValueError, match="of 3 and 4 numbers"):
        Promise.load(terms, data, features=4)


def test_state_stays_small():
    promise = Promise(Terms(0.05))
    rng = np.random.default_rng(0)
    for _ in range(3200):
        values = rng.normal(size=19)
        promise.label(values, promise.rule(values), bool(rng.random() < 0.5))
    assert len(promise.save()) < 400_000


def test_rows_forget_the_oldest():
    rows = Rows(100)
    assert len(rows) == len(rows.all) == 0
    for n in range(1000):
        rows.append(np.array([float(n)]), np.array([0.5, n / 2]))
        assert len(rows) == min(n + 1, 100)
    assert rows.all[:, 0].tolist() == list(range(900, 1000))
    assert rows.all[-1].tolist() == [999, 0.5, 499.5]
    with pytest.raises(ValueError, match="a row of 2 numbers among rows of 3"):
        rows.append(np.zeros(2))
    rows.keep_last(200)
    assert len(rows) == 100
    rows.keep_last(2)
    rows.append(np.array([1.0, 2.0, 3.0]))
    assert rows.all[:, 0].tolist() == [998, 999, 1]
    rows.replace(np.arange(8, dtype=np.float32).reshape(4, 2))
    rows.append(np.array([8.0, 9.0]))
    assert rows.all[:, 0].tolist() == [0, 2, 4, 6, 8]
    rows.keep_last(0)
    rows.append(np.zeros(3))
    assert rows.all.shape == (1, 3)
