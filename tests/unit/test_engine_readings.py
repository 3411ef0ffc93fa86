"""What engines say of themselves, read: vLLM's and llama.cpp's pages, parts of them, and what is no such page."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import UpstreamInvalid
from trimtab.serving.prometheus import samples
from trimtab.serving.readings import Kind, Page, Total, of_prometheus, read, trimmed

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a {strange} \\"name\\", x"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 60.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 40.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 40.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 48.0
vllm:generation_tokens_total{engine="0",model_name="m"} 250.0
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 9.0
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} 10.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} 2.5 1795219200000
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 240
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 1.2e+01
process_cpu_seconds_total 12.5
"""
LLAMA_CPP = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 71
llamacpp:prompt_tokens_cached_total 34
llamacpp:tokens_predicted_total 900
llamacpp:n_decode_total 600
llamacpp:requests_processing 2
llamacpp:requests_deferred 3

"""


def slot(n_ctx=512, busy=True, held=0, decoded=0, **more):
    slot = {"id": 0, "n_ctx": n_ctx, "is_processing": busy, "n_prompt_tokens": held}
    return slot | {"next_token": [{"n_decoded": decoded, "n_remain": 9}], "params": {"seed": 1}} | more


def test_vllm_in_full():
    reading = of_prometheus(VLLM, 7.0)
    assert (reading.at, reading.kind) == (7.0, Kind.VLLM)
    assert (reading.running, reading.waiting, reading.kv_usage, reading.preemptions) == (3, 2, 0.5, 4)
    assert (reading.prefill_tokens, reading.cached_tokens, reading.generated_tokens) == (60, 40, 250)
    assert reading.queue == Total(2.5, 10)
    assert reading.per_token == Total(12.0, 240)
    assert reading.draft_tokens is None and reading.slots is None and reading.ttft is None


def test_older_releases_of_vllm_have_other_names():
    old = """\
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:prompt_tokens_total{model_name="m"} 100.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 30.0
vllm:time_per_output_token_seconds_count{model_name="m"} 4.0
vllm:time_per_output_token_seconds_sum{model_name="m"} 1.0
"""
    reading = of_prometheus(old, 0.0)
    assert (reading.kv_usage, reading.prefill_tokens, reading.cached_tokens) == (0.25, 70, 30)
    assert reading.per_token == Total(1.0, 4)


def test_engines_behind_one_page_are_added_up_and_the_fullest_cache_counts():
    both = "".join(
        f'vllm:{name}{{engine="{engine}"}} {value}\n'
        for name, values in {"num_requests_running": (2, 3), "kv_cache_usage_perc": (0.2, 0.9)}.items()
        for engine, value in enumerate(values)
    )
    reading = of_prometheus(both, 0.0)
    assert (reading.running, reading.kv_usage) == (5, 0.9)


def test_llama_cpp_counts_requests_in_flight_by_its_slots():
    text = json.dumps([slot(held=400, decoded=20), slot(held=100, decoded=5), slot(busy=False, held=300, decoded=9)])
    reading = read(Page(0.0, LLAMA_CPP, text))
    assert (reading.kind, reading.slots, reading.context_tokens) == (Kind.LLAMA_CPP, 3, 512)
    assert (reading.running, reading.waiting) == (2, 3)
    assert (reading.prefill_tokens, reading.cached_tokens, reading.generated_tokens) == (71, 34, 925)
    assert reading.kv_usage == pytest.approx(500 / 1536)
    assert reading.kv_fullest == pytest.approx(400 / 512)


def test_llama_cpp_without_slots_and_older_slots():
    assert read(Page(0.0, LLAMA_CPP)).kv_usage is None
    fresh = '[{"id":0,"n_ctx":512,"speculative":false,"is_processing":false}]'  # before its first request
    assert read(Page(0.0, LLAMA_CPP, fresh)).kv_usage == 0.0
    older = json.dumps([slot(held=10) | {"next_token": {"n_decoded": 7}}])
    assert read(Page(0.0, LLAMA_CPP, older)).generated_tokens == 907
    assert read(Page(0.0, LLAMA_CPP, "[]")).kv_usage is None


@pytest.mark.parametrize("value", ["NaN", "nan"])
def test_what_is_not_a_number_is_not_known(value):
    reading = of_prometheus(VLLM.replace('_perc{engine="0",model_name="m"} 0.5', f"_perc {value}"), 0.0)
    assert reading.kv_usage is None and reading.running == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither vLLM's"),
        ("sglang:num_running_reqs 3\n", "neither vLLM's"),
        ("<html>\n<body>404</body>\n</html>", "line 1 of its metrics is no sample: '<html>'"),
        (VLLM + "vllm:num_requests_running\n", "line 19 of its metrics is no sample"),
        (VLLM + "vllm:num_requests_running three\n", "line 19 of its metrics has no number"),
        (VLLM + 'vllm:generation_tokens_total{engine="1} 3\n', "line 19 of its metrics is no sample"),
        (VLLM + 'vllm:generation_tokens_total{engine="1"} -300\n', "generation_tokens_total is -300"),
        (VLLM + 'vllm:generation_tokens_total{engine="1"} +Inf\n', "generation_tokens_total is inf"),
        ("x" * 5000, "line 1 of its metrics is no sample: '" + "x" * 60 + "'"),
    ],
)
def test_what_is_no_page_is_named_with_its_line(text, said):
    with pytest.raises(UpstreamInvalid) as caught:
        of_prometheus(text, 0.0)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "Expected `array`"),
        ('[{"n_ctx": 4}]', "is_processing"),
        ('[{"n_ctx":"x"}]', "$[0].n_ctx"),
        ("[", "/slots"),
    ],
)
def test_slots_that_are_none_are_named_with_their_field(text, said):
    with pytest.raises(UpstreamInvalid) as caught:
        read(Page(0.0, LLAMA_CPP, text))
    assert said in caught.value.message


def test_a_trimmed_page_reads_the_same():
    page = Page(3.0, VLLM)
    assert read(trimmed(page)) == read(page)
    assert "process_cpu" not in trimmed(page).metrics and "_bucket" not in trimmed(page).metrics
    page = Page(3.0, LLAMA_CPP, json.dumps([slot(held=4, decoded=2), slot(busy=False)]))
    assert read(trimmed(page)) == read(page)
    assert "seed" not in trimmed(page).slots


LABELS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=12), max_size=3)


@given(LABELS, st.floats(allow_nan=False), st.booleans())
def test_any_sample_is_read_as_it_was_written(labels, value, stamped):
    written = {
        name: text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, text in labels.items()
    }
    inside = ",".join(f'{name}="{text}"' for name, text in written.items())
    if len(inside.splitlines()) > 1:  # what else ends a line for Python ends none for Prometheus
        return
    line = f"a:b_total{{{inside}}} {value!r}{' 1795219200000' if stamped else ''}"
    (found,) = samples(line, {"a:b_total"})
    assert found.labels == written
    assert found.value == value or math.isclose(found.value, value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UpstreamInvalid):
        of_prometheus(text, 0.0)
