"""The queue in front of an engine, with a clock that stands still: whose turn it is, and who is refused."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from trimtab.admission import Asking, Done, Gate, GateTerms, cost_of, cost_used
from trimtab.admission.limit import AdaptiveLimit, Limit
from trimtab.errors import Overloaded, RateLimited
from trimtab.types import Dialect, Request, Scope, Usage

WHOLE = Done(whole=True)


class Clock:
    def __init__(self):
        self.now = 0.0

    def mono(self):
        return self.now

    def wall(self):
        return self.now


class World:
    """A gate, and who got a place in which order."""

    def __init__(self, most=1, **terms):
        self.clock, self.refused, self.order = Clock(), [], []
        self.gate = Gate("e", GateTerms(most, **terms), self.clock, self.refused.append)
        self.at_engine = []

    def ask(self, tenant, cost=100.0, patience_s=1000.0, batch=False):
        place = self.gate.enter(Asking(tenant, cost, patience_s, batch))
        if place.began is not None:
            self.at_engine.append(place)
        else:
            place.turn = lambda: (self.order.append(tenant), self.at_engine.append(place))
        return place

    def serve(self, seconds=1.0, done=WHOLE):
        """The one that runs longest is done."""
        self.clock.now += seconds
        self.at_engine.pop(0).leave(done)

    def serve_all(self):
        while self.at_engine:
            self.serve()
        return self.order


def test_a_request_runs_at_once_while_there_is_room():
    world = World(2)
    assert [world.ask("a").began, world.ask("a").began, world.ask("a").began] == [0.0, 0.0, None]
    assert (world.gate.running, world.gate.waiting) == (2, 1)
    world.serve()
    assert (world.gate.running, world.gate.waiting, world.order) == (2, 0, ["a"])


def test_who_asks_for_little_is_not_behind_who_asks_for_much():
    world = World()
    for _ in range(6):
        world.ask("greedy")
    world.ask("modest")
    world.ask("other")
    assert world.serve_all()[:3] == ["modest", "other", "greedy"]


def test_service_follows_the_weights():
    world = World(weights={"gold": 3.0})
    world.ask("first")
    for _ in range(8):
        world.ask("gold")
        world.ask("plain")
    turns = world.serve_all()
    assert turns[:8].count("gold") == 6


def test_a_dear_request_costs_its_tenant_more_turns():
    world = World()
    world.ask("first")
    for _ in range(8):
        world.ask("long", cost=400.0)
        world.ask("short", cost=100.0)
    assert world.serve_all()[:10].count("short") == 8


def test_what_a_call_really_cost_is_counted_afterwards():
    world = World()
    world.ask("sly")
    for _ in range(4):
        world.ask("sly")
        world.ask("honest")
    world.serve(done=Done(cost=400.0, whole=True))  # four times the estimate
    assert world.serve_all()[:3] == ["honest", "honest", "honest"]


def test_nobody_saves_up_turns_by_being_away():
    world = World()
    world.ask("busy")
    for _ in range(10):
        world.ask("busy")
    for _ in range(6):
        world.serve()
    world.order.clear()
    for _ in range(4):
        world.ask("late")
    assert world.serve_all()[:4] == ["late", "busy", "late", "busy"]


def test_nobody_saves_up_turns_during_a_long_call():
    world = World(2)
    long = world.ask("slow")
    world.at_engine.clear()  # it stays
    for _ in range(8):
        world.ask("busy")
    for _ in range(4):
        world.serve()
    world.order.clear()
    for _ in range(4):
        world.ask("slow")
    assert "busy" in world.serve_all()[:3]
    assert (long.began, world.gate.running) == (0.0, 1)


def test_debts_are_forgotten_when_nobody_is_there():
    world = World()
    world.ask("a", cost=1e6)
    world.serve()
    world.ask("b")
    world.ask("b")
    world.ask("a")
    assert world.serve_all() == ["a", "b"]  # b was served since


def test_batch_waits_for_all_that_is_interactive():
    world = World(4, batch_share=0.5)
    assert [world.ask("night", batch=True).began for _ in range(3)] == [0.0, 0.0, None]
    for _ in range(3):
        world.ask("day")
    assert world.gate.running == 4
    for _ in range(3):  # two of the night and one of the day
        world.serve()
    assert (world.order, world.gate.running) == (["day"], 2)
    world.serve()
    assert world.order == ["day", "night"]


def test_batch_has_one_slot_at_least():
    world = World(1, batch_share=0.1)
    assert world.ask("night", batch=True).began == 0.0


def test_a_client_that_leaves_the_line_frees_its_place():
    world = World()
    world.ask("a")
    gone, stays = world.ask("b"), world.ask("b")
    gone.leave()
    assert (world.gate.waiting, world.gate.running) == (1, 1)
    world.serve()
    assert stays.began == 1.0
    assert gone.began is None


def measured(most=1, **terms):
    """A world whose engine takes a second for a request of 100."""
    world = World(most, **terms)
    for _ in range(3):
        world.ask("a")
        world.serve()
    return world


def test_a_wait_that_would_be_too_long_is_refused_at_once_with_an_honest_retry_after():
    world = measured(max_wait_s=21.0)
    for _ in range(10):
        world.ask("a")
    with pytest.raises(Overloaded, match="10 requests wait for engine e, 1 run: a wait of 11 s is to be exp") as caught:
        for _ in range(10):
            world.ask("a")
    assert caught.value.retry_after_s == 1
    assert world.refused == ["full"]
    world.serve()
    world.ask("a")  # a second later there is room again, as it said


def test_who_asks_for_more_than_its_share_is_told_so_and_others_still_get_a_place():
    world = measured(max_wait_s=20.0)
    for _ in range(6):
        world.ask("greedy")
    world.ask("modest")
    with pytest.raises(RateLimited, match="greedy has more than its share of engine e") as caught:
        for _ in range(20):
            world.ask("greedy")
    assert caught.value.retry_after_s == 1
    assert world.refused == ["share"]
    world.ask("modest")
    assert world.serve_all()[:2] == ["modest", "greedy"]


def test_the_retry_after_is_the_time_until_the_line_is_short_enough():
    world = measured()
    for _ in range(10):
        world.ask("a")
    with pytest.raises(Overloaded) as caught:
        world.ask("b", cost=1000.0, patience_s=4.0)
    assert caught.value.retry_after_s == 9  # b is next: 1,000 tokens ahead at 100 a second, of which 2 s are allowed


def test_batch_has_its_routes_patience_only():
    world = measured(max_wait_s=2.0)
    for _ in range(5):
        world.ask("night", batch=True)
    with pytest.raises(Overloaded):
        world.ask("night", batch=True, patience_s=2.0)


def test_batch_expects_to_wait_for_all_that_is_interactive():
    world = measured()
    for _ in range(5):
        world.ask("day")
    world.ask("day", patience_s=12.0)
    with pytest.raises(Overloaded, match="a wait of 6 s is to be expected"):
        world.ask("night", batch=True, patience_s=10.0)


def test_predictions_learn_from_how_long_requests_really_waited():
    world = measured(max_wait_s=20.0)
    for _ in range(60):
        world.ask("a")
        world.serve()
    for _ in range(4):
        world.ask("a")
    with pytest.raises(Overloaded, match="2 requests wait"):
        for _ in range(8):  # four times as slow as what is known of the engine's speed says
            world.serve(4.0)
            world.ask("a")
    assert world.gate._lines[False].bias("a") > 2


def test_new_terms_take_hold_at_once():
    world = World(1)
    for _ in range(4):
        world.ask("a")
    world.gate.use(GateTerms(3))
    assert (world.gate.running, world.gate.waiting) == (3, 1)
    world.gate.use(GateTerms(1))
    world.serve()
    world.serve()
    assert (world.gate.running, world.gate.waiting) == (1, 1)


async def test_a_turn_comes_when_a_place_is_free():
    world = World(1)
    first = await world.gate.turn(Asking("a", 1.0, 10.0))
    second = asyncio.create_task(world.gate.turn(Asking("a", 1.0, 10.0)))
    await asyncio.sleep(0)
    assert not second.done()
    first.leave()
    assert (await second).began is not None
    (await second).leave()
    assert (world.gate.running, world.gate.waiting) == (0, 0)


async def test_who_is_cancelled_in_line_or_at_its_turn_leaves_nothing_behind():
    world = World(1)
    first = await world.gate.turn(Asking("a", 1.0, 10.0))
    waiting, called = (asyncio.create_task(world.gate.turn(Asking("a", 1.0, 10.0))) for _ in range(2))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    first.leave()  # the turn of `called`, which is cancelled before it hears so
    called.cancel()
    assert world.gate.running == 1
    await asyncio.gather(waiting, called, return_exceptions=True)
    assert (world.gate.running, world.gate.waiting) == (0, 0)


async def test_who_waits_in_vain_is_told_so():
    world = World(1, max_wait_s=0.01)
    await world.gate.turn(Asking("a", 1.0, 10.0))
    with pytest.raises(Overloaded, match=r"no turn within 0.01 s; 0 requests wait for engine e, 1 run"):
        await world.gate.turn(Asking("a", 1.0, 10.0))
    assert (world.refused, world.gate.waiting) == (["late"], 0)


def hear(limit, *late, felt=True, began=0.0, now=1.0):
    for one in late:
        limit.hear(began, now, late=one, felt=felt)
    return limit.value


def test_the_limit_follows_the_target():
    limit = AdaptiveLimit(5)
    assert hear(limit, *[False] * 9) == 5
    assert hear(limit, False) == 10  # it doubles until it was too much
    assert hear(limit, *[False] * 10, felt=False) == 10  # nobody needed more
    assert hear(limit, True, True) == 9
    assert hear(limit, *[True] * 50, began=0.5) == 9  # they began under the former limit
    assert hear(limit, True, *[False] * 9, began=2.0) == 10  # a tenth may be late
    assert hear(limit, *[False] * 10, began=2.0) == 11


def test_the_limit_is_never_below_one():
    limit = AdaptiveLimit(2)
    for turn in range(50):
        hear(limit, True, True, began=10.0 + turn, now=10.0 + turn)
    assert limit.slots == 1
    assert hear(limit, *[False] * 10, began=100.0) == 2  # and not far below it, from where the way back is long
    assert Limit(0.2).slots == 1


def test_an_engine_that_slows_down_under_load_gets_as_many_as_it_can_take_in_time():
    world = World(None, target_s=1.0)
    for _ in range(2000):
        while world.gate.waiting < 3:
            world.ask("a")
        took_s = len(world.at_engine) * 0.05  # 20 at once reach the target
        world.serve(took_s / len(world.at_engine), Done(first_s=took_s, whole=True))
    assert 15 <= world.gate.limit.slots <= 22


def test_an_engine_that_says_it_is_busy_gets_less():
    world = World(None, target_s=1.0)
    for _ in range(100):
        world.ask("a")
        world.serve(done=Done(busy=True))
    assert world.gate.limit.slots < 8


def test_calls_that_say_nothing_of_the_first_token_move_nothing():
    world = World(None, target_s=1.0)
    for _ in range(100):
        world.ask("a")
        world.serve(seconds=60.0)
    assert world.gate.limit.value == 8


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, 100 + 512),
        ({"max_tokens": b"10"}, 100 + 20),
        ({"max_completion_tokens": b"20", "max_tokens": b"10"}, 100 + 40),
        ({"max_tokens": b"100000"}, 100 + 2048),
        ({"max_tokens": b"-5"}, 100 + 512),
        ({"max_tokens": b'"many"'}, 100 + 512),
        ({"max_tokens": b"9" * 5000}, 100 + 512),
    ],
)
def test_a_requests_estimated_cost(fields, cost):
    raw = {name: msgspec.Raw(text) for name, text in fields.items()}
    request = Request("id", Dialect.OPENAI, "/v1/chat/completions", Scope("t"), "m", raw, True, False, 400, 0.0, 0.0)
    assert cost_of(request) == cost


def test_cached_tokens_cost_nothing_and_answers_double():
    assert cost_used(Usage(input=10, cache_read=90, output=5, reasoning=5)) == 30
