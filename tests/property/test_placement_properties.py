"""Placement: a mirror is the cache it mirrors, work stays within its bound, and one history gives one answer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.placement import Placer, prefix_blocks
from trimtab.placement.mirror import Mirror

often = settings(deadline=None, max_examples=150)


class Cache:
    """A prefix cache, written down plainly: the least recently used block goes first, of one prompt the last."""

    def __init__(self, capacity):
        self.capacity, self.order = capacity, []

    def use(self, blocks):
        found = next((n for n, block in enumerate(blocks) if block not in self.order), len(blocks))
        kept = [block for block in self.order if block not in blocks]
        self.order = (kept + list(reversed(blocks)))[-self.capacity :]
        return found


@st.composite
def prompts(draw, most=40):
    """Prompts that grow out of earlier ones: each is some earlier one's beginning, and blocks of its own."""
    made, fresh = [], iter(range(10_000))
    for _ in range(draw(st.integers(1, most))):
        base = draw(st.sampled_from(made)) if made and draw(st.booleans()) else ()
        kept = base[: draw(st.integers(0, len(base)))]
        made.append((*kept, *(next(fresh) for _ in range(draw(st.integers(0, 6))))))
    return made


@often
@given(prompts(), st.integers(1, 30))
def test_a_mirror_holds_what_the_cache_holds(made, capacity):
    mirror, cache = Mirror(capacity), Cache(capacity)
    for blocks in made:
        expected = mirror.match(blocks)
        mirror.use(blocks)
        assert expected == cache.use(blocks)
        assert len(mirror) == len(cache.order) <= capacity


@often
@given(prompts(), st.integers(1, 30), st.integers(1, 4))
def test_what_is_expected_is_what_true_caches_of_that_size_had(made, capacity, count):
    placer = Placer([f"r{n}" for n in range(count)], capacity)
    caches = {name: Cache(capacity) for name in placer.replicas}
    for moment, blocks in enumerate(made):
        choice = placer.choose(blocks, 100 * len(blocks), moment)
        had = caches[choice.replica].use(blocks)
        assert choice.expected_cached_blocks == had <= choice.most_cached_blocks
        placer.heard(choice, had)
        placer.done(choice, 50)


@often
@given(prompts(), st.integers(2, 6))
def test_nobody_has_much_more_work_than_the_mean(made, count):
    placer = Placer([f"r{n}" for n in range(count)], 1000)
    work = dict.fromkeys(placer.replicas, 0.0)
    greatest = 0.0
    for blocks in (*made, *made, *made):
        choice = placer.choose((-1, *blocks), 100 * (len(blocks) + 1), 0.0)
        work[choice.replica] += choice.work
        greatest = max(greatest, 100 * (len(blocks) + 1) + 256)
    # The bound, one request, and what the cheapest way to break it may have saved.
    assert max(work.values()) <= 1.05 * sum(work.values()) / count + 3 * greatest


@often
@given(prompts(), st.lists(st.floats(0, 100), min_size=1, max_size=40), st.integers(1, 5))
def test_one_history_gives_one_answer(made, pauses, count):
    def run():
        placer = Placer([f"r{n}" for n in range(count)], 20)
        moment, found = 0.0, []
        for n, blocks in enumerate(made):
            moment += pauses[n % len(pauses)]
            found.append(placer.choose(blocks, 10 * len(blocks), moment))
            placer.heard(found[-1], n % 3)
            if n % 2:
                placer.done(found[n // 2], n)
        return found

    assert run() == run()


@often
@given(prompts(), st.lists(st.tuples(st.sampled_from(["add", "remove", "lost"]), st.integers(0, 5)), max_size=40))
def test_only_those_that_are_there_are_chosen_and_who_lost_all_holds_nothing(made, events):
    placer = Placer(["r0"], 50)
    choices, empty = [], set()
    for n, blocks in enumerate(made):
        if n < len(events):
            what, number = events[n]
            name = f"r{number}"
            if what != "lost":
                empty.discard(name)
            if what == "add" and name not in placer.replicas:
                placer.add(name)
            elif what == "remove" and name in placer.replicas and len(placer.replicas) > 1:
                placer.remove(name)
            elif what == "lost" and name in placer.replicas:
                placer.lost(name)
                empty.add(name)
        choices.append(placer.choose(blocks, 100, n))
        chosen = choices[-1].replica
        assert chosen in placer.replicas
        assert chosen not in empty or choices[-1].expected_cached_blocks == 0
        empty.discard(chosen)
        for late in choices[-3:]:  # those of a replica that is gone do no harm
            placer.heard(late, 1)
            placer.done(late)


@often
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4), st.integers(1, 40), st.binary(max_size=100))
def test_a_prompt_that_grows_keeps_its_blocks(parts, size, more):
    short = prefix_blocks(parts, size)
    assert len(short) == sum(len(part) + 1 for part in parts) // size
    grown = prefix_blocks([*parts[:-1], parts[-1] + more], size)
    same = (sum(len(part) + 1 for part in parts) - 1) // size  # without the mark that ends the last part
    assert grown[:same] == short[:same]


@often
@given(st.binary(min_size=1, max_size=200), st.integers(1, 20), st.data())
def test_after_a_byte_that_differs_no_block_is_the_same(prompt, size, data):
    place = data.draw(st.integers(0, len(prompt) - 1))
    other = prompt[:place] + bytes([prompt[place] ^ 1]) + prompt[place + 1 :]
    ours, theirs = prefix_blocks((prompt,), size), prefix_blocks((other,), size)
    assert ours[: place // size] == theirs[: place // size]
    assert not set(ours[place // size :]) & set(theirs[place // size :])
