"""Placement: who gets which request, and what is learned of the caches."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict

import msgspec
import pytest

from trimtab.errors import BadRequest
from trimtab.placement import Choice, Placer, prefix_blocks
from trimtab.placement.mirror import Mirror

FOUR = ["a", "b", "c", "d"]


def blocks(conversation: int, count: int) -> tuple[int, ...]:
    return tuple(1000 * conversation + n for n in range(count))


def test_a_conversation_stays_and_new_ones_go_where_there_is_room():
    placer = Placer(FOUR, 1000)
    first = [placer.choose(blocks(n, 10), 1000, 0.0) for n in range(4)]
    assert sorted(choice.replica for choice in first) == FOUR
    assert {choice.reason for choice in first} == {"new"}
    again = [placer.choose(blocks(n, 12), 1200, 1.0) for n in range(4)]
    assert [choice.replica for choice in again] == [choice.replica for choice in first]
    assert {(choice.reason, choice.expected_cached_blocks) for choice in again} == {("prefix", 10)}


def test_a_lone_conversation_rarely_moves():
    placer = Placer(FOUR, 1000)
    turns = []
    for n in range(30):
        turns.append(placer.choose(blocks(1, 30 + 2 * n), 3000 + 200 * n, 20.0 * n))
        placer.done(turns[-1], 100)
    moves = sum(one.replica != before.replica for before, one in itertools.pairwise(turns))
    assert moves <= 6
    assert sum(one.expected_cached_blocks for one in turns) >= 0.85 * sum(len(one.blocks) for one in turns)


def test_a_prefix_that_all_share_is_copied_to_all():
    placer = Placer(FOUR, 1000)
    chosen = [placer.choose((*blocks(1, 40), 9000 + n), 4100, n / 10) for n in range(400)]
    for replica in FOUR:
        assert 80 <= sum(choice.replica == replica for choice in chosen) <= 120
    assert sum(choice.expected_cached_blocks < 40 for choice in chosen) <= 8
    assert "load" in {choice.reason for choice in chosen}


def test_who_is_known_to_be_busy_is_spared():
    placer = Placer(FOUR, 1000)
    busy = {"a": 50_000.0, "b": 50_000.0, "c": 0.0, "d": 50_000.0}
    assert placer.choose(blocks(1, 5), 500, 0.0, in_flight=busy).replica == "c"


def test_unfinished_work_counts_after_it_is_old_and_until_it_is_done():
    placer = Placer(["a", "b"], 1000)
    long = placer.choose(blocks(1, 100), 100_000, 0.0)
    other = placer.choose(blocks(2, 1), 100, 600.0)
    assert (long.replica, other.replica) == ("a", "b")
    placer.done(long, 100)
    assert placer.choose(blocks(3, 1), 100, 600.0).replica == "a"


def test_an_end_that_nobody_reports_is_forgotten():
    placer = Placer(["a", "b"], 1000)
    assert placer.choose(blocks(1, 100), 100_000, 0.0).replica == "a"
    day_s = 86_400.0
    chosen = [placer.choose(blocks(n, 1), 100, day_s).replica for n in range(2, 12)]
    assert chosen.count("a") == chosen.count("b")


def test_a_restart_that_nobody_told_of_is_noticed():
    placer = Placer(["a"], 1000)
    for n in range(4):
        placer.choose(blocks(n, 10), 1000, n)
    for n in range(3):
        choice = placer.choose(blocks(n, 10), 1000, 10 + n)
        assert choice.expected_cached_blocks == 10
        placer.heard(choice, 0)
    assert placer.choose(blocks(3, 10), 1000, 20).expected_cached_blocks == 0


def test_who_lost_its_cache_is_sent_nothing_for_its_sake():
    placer = Placer(["a", "b"], 1000)
    home = placer.choose(blocks(1, 10), 1000, 0.0)
    placer.lost(home.replica)
    again = placer.choose(blocks(1, 10), 1000, 1.0)
    assert (again.reason, again.expected_cached_blocks) == ("new", 0)


def learned(true_capacity: int, configured: int) -> int:
    """The capacity that a mirror believes in after 3,000 prompts from a replica that has another."""
    rng = random.Random(1)
    mirror = Mirror(configured)
    cache: OrderedDict[int, None] = OrderedDict()
    for _ in range(3000):
        prompt = blocks(min(int(rng.expovariate(1 / 30)), 200), 10)
        had = next((n for n, block in enumerate(prompt) if block not in cache), len(prompt))
        for block in reversed(prompt):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > true_capacity:
            cache.popitem(last=False)
        expected = mirror.match(prompt)
        age = mirror.age(prompt, expected)
        mirror.use(prompt)
        mirror.heard(expected, had, age)
    return mirror.capacity_blocks


def test_the_capacity_is_learned_from_reports():
    assert 180 <= learned(200, configured=100) <= 320
    assert 180 <= learned(200, configured=400) <= 320
    assert 180 <= learned(200, configured=200) <= 320


def test_young_blocks_that_are_gone_say_nothing_of_the_capacity():
    mirror = Mirror(1000)
    mirror.use(blocks(1, 10))
    for _ in range(50):
        mirror.heard(10, 5, mirror.age(blocks(1, 10), 10))
    assert mirror.capacity_blocks == 1000


def test_a_newcomer_is_not_flooded():
    placer = Placer(["a", "b"], 1000)
    for n in range(200):
        placer.done(placer.choose(blocks(n, 5), 500, n / 10))
    placer.add("c")
    chosen = [placer.choose(blocks(1000 + n, 5), 500, 20 + n / 10).replica for n in range(60)]
    assert 10 <= chosen.count("c") <= 30


def test_a_removed_replica_is_chosen_no_more():
    placer = Placer(["a", "b"], 1000)
    home = placer.choose(blocks(1, 10), 1000, 0.0)
    placer.remove(home.replica)
    assert placer.choose(blocks(1, 10), 1000, 1.0).replica != home.replica
    placer.heard(home, 10)
    placer.done(home, 10)
    placer.placed(home)


def test_a_worker_that_is_told_knows_what_the_other_knows():
    mine, theirs = Placer(FOUR, 1000), Placer(FOUR, 1000)
    for n in range(20):
        choice = mine.choose(blocks(n, 10), 1000, n)
        theirs.placed(msgspec.json.decode(msgspec.json.encode(choice), type=Choice))
    for n in range(20):
        assert theirs.choose(blocks(n, 12), 1200, 30.0) == mine.choose(blocks(n, 12), 1200, 30.0)


def test_mistakes_name_the_way_out():
    with pytest.raises(BadRequest, match="holds nothing"):
        Placer(["a"], 0)
    with pytest.raises(BadRequest, match="add one"):
        Placer([], 10).choose((), 10, 0.0)
    placer = Placer(["a"], 10)
    with pytest.raises(BadRequest, match="there already"):
        placer.add("a")
    with pytest.raises(BadRequest, match="there are: a"):
        placer.remove("b")
    with pytest.raises(BadRequest, match="at least one"):
        prefix_blocks((b"x",), 0)


def test_short_prompts_are_spread():
    placer = Placer(FOUR, 10)
    chosen = [placer.choose((), 20, 0.0) for _ in range(40)]
    assert {choice.reason for choice in chosen} == {"new"}
    assert all(sum(choice.replica == replica for choice in chosen) == 10 for replica in FOUR)


def test_messages_that_grow_share_their_blocks():
    tools, start = b'[{"type":"function"}]', b'[{"role":"system","content":"' + b"x" * 3000
    short = prefix_blocks((b'"m"', tools, start + b'"}]'))
    long = prefix_blocks((b'"m"', tools, start + b'"},{"role":"user","content":"' + b"y" * 2000 + b'"}]'))
    assert len(short) == 2
    assert long[:2] == short
    assert prefix_blocks((b'"n"', tools, start)) != short
