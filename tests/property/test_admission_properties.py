"""What the queue in front of an engine promises, whatever comes: it is full while somebody waits, and fair."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.admission import Asking, Done, Gate, GateTerms
from trimtab.errors import Overloaded, RateLimited

TENANTS = ("a", "b", "c", "d")
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(TENANTS), st.integers(1, 5000), st.booleans()),
    st.tuples(st.just("done"), st.integers(0, 9), st.one_of(st.none(), st.integers(0, 9000)), st.booleans()),
    st.tuples(st.just("gone"), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("use"), st.integers(1, 5), st.none(), st.none()),
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def mono(self):
        return self.now

    def wall(self):
        return self.now


class World:
    def __init__(self, terms):
        self.clock = Clock()
        self.gate = Gate("e", terms, self.clock, lambda why: None)
        self.waiting, self.at_engine, self.turns = [], [], []

    def ask(self, tenant, cost, batch=False):
        try:
            place = self.gate.enter(Asking(tenant, float(cost), 1e9, batch))
        except (Overloaded, RateLimited):
            return
        if place.began is None:
            self.waiting.append(place)
            place.turn = lambda: self.came(place)
        else:
            self.came(place, waited=False)

    def came(self, place, *, waited=True):
        if waited:
            self.waiting.remove(place)
        self.at_engine.append(place)
        self.turns.append(place.asking)

    def done(self, n=0, cost=None):
        self.at_engine.pop(n % len(self.at_engine)).leave(Done(cost=cost, whole=True))

    def gone(self, n):
        self.waiting.pop(n % len(self.waiting)).leave()


@settings(deadline=None, max_examples=300)
@given(slots=st.integers(1, 5), share=st.sampled_from((0.0, 0.5, 1.0)), steps=st.lists(STEPS, max_size=60))
def test_the_engine_is_full_while_somebody_waits_and_never_fuller(slots, share, steps):
    world = World(GateTerms(slots, batch_share=share, weights={"b": 3.0}))
    gate = world.gate
    for what, first, second, third in steps:
        world.clock.now += 0.1
        before = gate.running
        if what == "ask":
            world.ask(first, second, third)
        elif what == "done" and world.at_engine:
            world.done(first, second)
        elif what == "gone" and world.waiting:
            world.gone(first)
        elif what == "use":
            slots = first
            gate.use(GateTerms(slots, batch_share=share, weights={"b": 3.0}))
        assert (gate.running, gate.waiting) == (len(world.at_engine), len(world.waiting))
        assert gate.running <= max(slots, before)  # a limit that sank ends nothing
        day = [place for place in world.waiting if not place.asking.batch]
        assert not day or gate.running >= slots
        assert not world.waiting or gate.running >= min(slots, max(1, int(slots * share)))
    for _ in range(len(world.at_engine) + len(world.waiting)):
        world.done()
    assert (gate.running, gate.waiting) == (0, 0)  # nobody starves


@settings(deadline=None, max_examples=100)
@given(
    slots=st.integers(1, 4),
    weights=st.lists(st.sampled_from((1.0, 2.0, 5.0)), min_size=2, max_size=4),
    costs=st.lists(st.integers(50, 1000), min_size=4, max_size=4),
)
def test_tenants_that_always_wait_are_served_by_weight(slots, weights, costs):
    names = TENANTS[: len(weights)]
    world = World(GateTerms(slots, weights=dict(zip(names, weights, strict=True))))
    cost = dict(zip(TENANTS, costs, strict=True))

    def refill():
        for name in names:
            while sum(place.asking.tenant == name for place in world.waiting) < 2:
                world.ask(name, cost[name])

    refill()
    for _ in range(600):
        world.done()
        refill()
    served = {name: sum(one.cost for one in world.turns[slots:] if one.tenant == name) for name in names}
    normal = [served[name] / weight for name, weight in zip(names, weights, strict=True)]
    # The bound of start-time fair queueing: a request of each of two tenants, and those at the engine.
    allowed = (slots + 1) * 2 * max(cost[name] / weight for name, weight in zip(names, weights, strict=True))
    assert max(normal) - min(normal) <= allowed


@settings(deadline=None, max_examples=100)
@given(greed=st.integers(1, 50), slots=st.integers(1, 4), costs=st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_who_asks_now_and_then_is_next_whatever_the_greedy_have_in_line(greed, slots, costs):
    world = World(GateTerms(slots))
    for _ in range(greed + slots):
        world.ask("greedy", 500)
    for cost in costs:
        world.ask("modest", cost)
        before = len(world.turns)
        for _ in range(slots + 1):  # those at the engine, and one that was as far as it
            if world.at_engine:
                world.done()
            world.ask("greedy", 500)
        assert any(one.tenant == "modest" for one in world.turns[before:])
        while any(place.asking.tenant == "modest" for place in world.at_engine):
            world.done()
            world.ask("greedy", 500)
