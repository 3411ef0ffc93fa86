"""The semantic memory at size: the shortlist by signs, removal, and what a restored memory says."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.semantic import groups
from trimtab.semantic.evidence import Query
from trimtab.semantic.groups import Memory
from trimtab.semantic.learner import Learner
from trimtab.semantic.lexical import profile
from trimtab.semantic.promise import Terms

DIM, FAST = 96, 32


def unit(rng, *shape):
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def crowded(count, seed=0, dim=DIM):
    """Vectors around a hundred centres that lie in one half of the space, as questions on one topic do."""
    centres = unit(np.random.default_rng(100), 100, dim) + 0.5 / np.sqrt(dim)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(100, size=count)] + 0.5 * unit(rng, count, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def filled(vectors, capacity=None, agree=lambda n: {}):
    memory = Memory(capacity or len(vectors), vectors.shape[1], FAST)
    fast = unit(np.random.default_rng(9), len(vectors), FAST)
    for n, (one, other) in enumerate(zip(vectors, fast, strict=True)):
        memory.add(profile(f"question {n % 7} of {n % 11} cards"), one, other, agree(n))
    return memory


def agreeing(n):
    """Verdicts that make groups of all sizes, and now and then join two."""
    return {n - 5: n % 3 > 0, n - 1: n % 13 == 0} if n > 5 else {}


def same_answers(one, other, vectors):
    ids = [row.entry for row in one.rows()]
    assert ids == [row.entry for row in other.rows()]
    assert len(one) == len(other) == len(ids)
    assert [one.group(n) for n in ids] == [other.group(n) for n in ids]
    assert [one.profile(n) for n in ids] == [other.profile(n) for n in ids]
    for vector in vectors:
        (near, cosines), (others, other_cosines) = one.nearest(vector, 15), other.nearest(vector, 15)
        assert near.tolist() == others.tolist()
        assert cosines == pytest.approx(other_cosines, abs=1e-6)
        fast = vector[:FAST]
        assert one.fast_cosines(fast, near) == pytest.approx(other.fast_cosines(fast, near), abs=1e-6)
    known = sorted({one.group(n) for n in ids})
    for ours, theirs in zip(one.stats(known), other.stats(known), strict=True):
        assert np.allclose(ours, theirs, atol=1e-4)
    assert [one.rarity(f"{n}") for n in range(11)] == [other.rarity(f"{n}") for n in range(11)]
    assert one.rarity("card") == other.rarity("card")


def test_cosines_are_those_of_the_vectors_to_a_thousandth_and_a_text_finds_itself():
    vectors = crowded(500)
    memory = filled(vectors)
    near, cosines = memory.nearest(vectors[17], 500)
    assert near[0] == 17
    assert cosines[0] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(cosines - vectors[near] @ vectors[17]).max() < 4e-3
    assert (np.diff(cosines) <= 0).all()


def test_the_shortlist_finds_what_the_exact_scan_finds(monkeypatch):
    vectors = crowded(groups._EXACT_ROWS * 2, dim=384)
    memory = filled(vectors)
    asked = crowded(60, seed=1, dim=384)
    found = [memory.nearest(one, 15)[0] for one in asked]
    monkeypatch.setattr(groups, "_EXACT_ROWS", len(vectors))
    exact = [memory.nearest(one, 15)[0] for one in asked]
    assert all(len(np.unique(ids)) == 15 for ids in found)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]) / 15 >= 0.99


@pytest.mark.parametrize("exact_rows", [0, 10**9])
def test_more_are_asked_for_than_there_are_and_none_of_none(monkeypatch, exact_rows):
    monkeypatch.setattr(groups, "_EXACT_ROWS", exact_rows)
    memory = Memory(50, DIM, FAST)
    assert [len(part) for part in memory.nearest(crowded(1)[0], 15)] == [0, 0]
    vectors = crowded(8)
    memory = filled(vectors, 50)
    memory.remove(3)
    near, cosines = memory.nearest(vectors[0], 15)
    assert sorted(near.tolist()) == [0, 1, 2, 4, 5, 6, 7]
    assert (np.diff(cosines) <= 0).all()
    for n in range(8):
        memory.remove(n)
    assert len(memory.nearest(vectors[0], 15)[0]) == len(memory) == 0


def test_a_text_that_is_there_thousands_of_times_makes_no_longer_shortlist(monkeypatch):
    monkeypatch.setattr(groups, "_EXACT_ROWS", 0)
    vectors = np.repeat(crowded(1), 3000, axis=0)
    memory = filled(vectors)
    rows = memory._shortlist(vectors[0], 3000, 15)
    assert len(rows) == len(set(rows.tolist())) == 15 * groups._SHORTLIST_PER_WANTED
    assert len(memory.nearest(vectors[0], 2000)[0]) == 2000


@pytest.mark.parametrize("exact_rows", [0, 10**9])
def test_what_is_removed_is_nowhere_any_more(monkeypatch, exact_rows):
    monkeypatch.setattr(groups, "_EXACT_ROWS", exact_rows)
    vectors = crowded(300)
    memory = filled(vectors, agree=agreeing)
    gone = 100
    group, (sums, sizes) = memory.group(gone), memory.stats([memory.group(gone)])
    assert sizes[0] > 1
    rarity = memory.rarity("card")
    memory.remove(gone)
    memory.remove(gone)
    memory.remove(10**6)
    memory.remove(-1)
    assert gone not in memory
    assert len(memory) == 299
    assert gone not in memory.nearest(vectors[gone], 300)[0]
    assert gone not in [row.entry for row in memory.rows()]
    assert memory.vote({gone: True}) == ([], [])
    less, fewer = memory.stats([group])
    assert fewer[0] == sizes[0] - 1
    assert np.allclose(sums[0] - vectors[gone], less[0], atol=0.01)
    assert len(memory.recent(300)[1]) == 299
    assert memory.rarity("card") == rarity  # all have it, before and after
    memory.remove(101)
    assert memory.rarity("card") == pytest.approx(np.log(299 / 299))


def test_a_group_whose_last_question_is_removed_ends_and_is_not_begun_again():
    memory = filled(crowded(3), 10)
    groups_before = [memory.group(n) for n in range(3)]
    memory.remove(2)
    entry = memory.add(profile("new"), crowded(1)[0], crowded(1, dim=FAST)[0], {2: True})
    assert entry == 3
    assert memory.group(3) not in groups_before
    assert len(memory._lone) + len(memory._sums) == 3


def test_the_ring_uses_the_rows_of_removed_questions_again():
    vectors = crowded(25)
    memory = filled(vectors[:10], 10)
    for n in (0, 4, 9):
        memory.remove(n)
    for n, vector in enumerate(vectors[10:], 10):
        assert memory.add(profile("again"), vector, vector[:FAST], {}) == n
        assert all(entry not in memory for entry in (4, 9))
        assert 0 not in memory.nearest(vectors[0], 10)[0]
    assert len(memory) == 10
    assert sorted(memory.nearest(vectors[0], 99)[0].tolist()) == list(range(15, 25))
    assert memory.rarity("again") == 0.0


@pytest.mark.parametrize(("capacity", "exact_rows"), [(2000, 10**9), (700, 10**9), (700, 0)])
def test_a_restored_memory_behaves_as_the_one_it_was(monkeypatch, capacity, exact_rows):
    monkeypatch.setattr(groups, "_EXACT_ROWS", exact_rows)
    vectors = crowded(1000)
    memory = filled(vectors, capacity, agreeing)
    for n in range(0, 1000, 9):
        memory.remove(n)
    again = Memory(capacity, DIM, FAST)
    again.restore(memory.rows(), memory.next_id, memory.doubts)
    same_answers(memory, again, crowded(20, seed=3))
    for n, vector in enumerate(crowded(400, seed=4), 1000):
        for one in (memory, again):
            assert one.add(profile(f"later {n % 5}"), vector, vector[:FAST], agreeing(n)) == n
        if n % 10 == 0:
            memory.remove(n - 3)
            again.remove(n - 3)
    # A group that had ended before may have kept its number in one of the two, so only who is together is compared.
    for one in (memory, again):
        assert len(one) == len(list(one.rows()))
    pairs = {(memory.group(row.entry), again.group(row.entry)) for row in memory.rows()}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    for vector in crowded(20, seed=5):
        assert memory.nearest(vector, 15)[0].tolist() == again.nearest(vector, 15)[0].tolist()
    assert memory.rarity("later") == again.rarity("later")


@pytest.mark.parametrize("capacity", [40, 90, 1000])
def test_a_memory_of_another_size_keeps_the_youngest(capacity):
    vectors = crowded(150)
    memory = filled(vectors, 100)
    memory.remove(149)
    again = Memory(capacity, DIM, FAST)
    again.restore(memory.rows(), memory.next_id)
    kept = [n for n in range(50, 149) if n >= 150 - capacity]
    assert [row.entry for row in again.rows()] == kept
    assert again.nearest(vectors[120], 1)[0][0] == 120
    assert again.add(profile("next"), vectors[0], vectors[0, :FAST], {}) == 150
    assert again.nearest(vectors[0], 1)[0][0] == 150
    assert memory.stats([memory.group(120)])[1] == [1]


def test_restoring_refuses_a_memory_in_use_and_ids_in_disorder():
    memory = filled(crowded(5))
    rows = list(memory.rows())
    with pytest.raises(ValueError, match="new memory"):
        memory.restore(rows, 5)
    for wrong, next_id in (([rows[1], rows[0]], 5), (rows, 4)):
        with pytest.raises(ValueError, match="is not between"):
            Memory(10, DIM, FAST).restore(wrong, next_id)


def test_a_learner_goes_on_when_most_of_its_questions_were_removed():
    learner = Learner(Terms(0.05), accurate_dim=DIM, fast_dim=FAST, capacity=200)
    vectors = crowded(150)
    for n, vector in enumerate(vectors):
        look = learner.look(Query(profile(f"question {n}"), vector, vector[:FAST]))
        if n == 100:
            for entry in range(100):
                learner.memory.remove(entry)
        entry = learner.learn(look, dict.fromkeys(look.compare, n % 2 == 0))
        assert entry == n
    assert len(learner.memory) == 50
