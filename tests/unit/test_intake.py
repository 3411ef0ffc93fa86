"""What is read from a request's headers before anything else."""

from __future__ import annotations

import pytest

from trimtab.errors import BadRequest
from trimtab.wire.intake import Head, stages_in


def test_stages_of_the_application():
    head = Head(
        [(b"x-trimtab-stages", b"retrieval;dur=120.5, rerank ; dur = 40,retrieval;dur=10"), (b"accept", b"*/*")]
    )
    assert head.app_stages == {"retrieval": pytest.approx(0.1305), "rerank": 0.04}
    assert head.forward == [(b"accept", b"*/*")]
    assert head.ours == {}


TOO_MANY = ",".join(f"y{n};dur=1" for n in range(21))


@pytest.mark.parametrize("text", ["", "retrieval", "x;dur=-1", "a b;dur=1", "x;dur=1e9", "x;dur=99999999999", TOO_MANY])
def test_what_is_no_stage_is_named(text):
    with pytest.raises(BadRequest, match=r"retrieval;dur=120\.5") as refused:
        stages_in(text)
    assert refused.value.param == "x-trimtab-stages"


def test_a_header_of_ours_that_does_not_exist_is_named():
    with pytest.raises(BadRequest, match="x-trimtab-stages"):
        Head([(b"x-trimtab-typo", b"1")])
