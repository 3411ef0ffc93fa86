"""The report on an A/B test: what counts, and when it is not to be trusted."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ingest import PRICES, paid
from test_levers_watched import judged, trimtab

from trimtab.levers import ab
from trimtab.quality.split import MISMATCH_P, mean_score, sample_ratio_p
from trimtab.stores import _arms, ledger_db, ledger_reader
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.types import DecisionRecord, Feedback, Scope


def test_known_values_of_chi_square():
    assert sample_ratio_p(500, 500, 0.5) == 1.0
    assert sample_ratio_p(531, 469, 0.5) == pytest.approx(0.04995, abs=1e-4)  # 1.96 standard deviations
    assert sample_ratio_p(900, 100, 0.1) == 1.0
    assert sample_ratio_p(940, 60, 0.1) == pytest.approx(2.5e-5, rel=0.05)


def test_few_units_tell_nothing_and_a_wrong_arm_everything():
    assert sample_ratio_p(0, 0, 0.5) is None
    assert sample_ratio_p(45, 4, 0.1) is None
    assert sample_ratio_p(9, 0, 0.0) is None
    assert sample_ratio_p(9, 1, 0.0) == 0.0
    assert sample_ratio_p(1, 9, 1.0) == 0.0


def test_a_fair_split_is_seldom_distrusted_and_a_lossy_one_mostly_is():
    draw = random.Random(1)
    fair = lossy = 0
    for _ in range(400):
        in_b = sum(draw.random() < 0.2 for _ in range(2000))
        fair += sample_ratio_p(2000 - in_b, in_b, 0.2) < MISMATCH_P
        kept = sum(draw.random() < 0.75 for _ in range(in_b))  # a quarter of arm B never reaches the ledger
        lossy += sample_ratio_p(2000 - in_b, kept, 0.2) < MISMATCH_P
    assert fair <= 4
    assert lossy >= 350


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_mean_lies_between_its_bounds(scores):
    count, mean, lower, upper = mean_score(scores)
    assert count == len(scores)
    assert -1e-6 <= lower <= mean + 1e-6
    assert mean - 1e-6 <= upper <= 1 + 1e-6


def test_many_scores_narrow_the_bounds():
    assert mean_score([]) is None
    _, mean, lower, upper = mean_score([0.0, 1.0] * 1000)
    assert mean == 0.5 and 0.42 < lower < 0.5 < upper < 0.58


def request(number, arm, *, user=None, share=0.5, candidate="cheap", route="default", **more):
    place = ab.position(Scope("t", route), candidate, "user", user or str(number))
    own, other = ("good", candidate) if arm == "A" else (candidate, "good")
    reason = f"arm {arm} {own} against {other}, by user"
    decision = DecisionRecord("ab", "1", "ADMIT", "change" if arm == "B" else "continue", reason, place, share)
    fields = {"scope": Scope("t", route, user=user or str(number)), "at": 1000.0 + number, "decisions": (decision,)}
    tokens = more.pop("tokens", 1000 if arm == "A" else 100)
    return paid(f"tt-{number:020x}", tokens, **(fields | more))


@pytest.fixture
def journal(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w0")
    yield journal
    journal.close()


def report(tmp_path, *arguments, **more):
    ingester = Ingester(tmp_path, PRICES)
    ingester.run_once()
    ingester.close()
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        return reader.arms(*(arguments or ("default",)), **more)


def test_both_arms_side_by_side(tmp_path, journal):
    for number in range(100):
        arm = "AB"[number % 2]
        bad = number % 10 == 1
        journal.row(
            request(number, arm, total_s=1.0 if arm == "A" else 0.1 * (number // 2), end="error" if bad else "ok")
        )
        journal.note(Feedback(f"tt-{number:020x}", "t", 1.0, float(arm == "B")))
    found = report(tmp_path)
    a, b = found["arms"]["A"], found["arms"]["B"]
    assert (found["candidate"], found["trusted"], found["setting_changed"], found["since"]) == (
        "cheap", True, False, 1000.0,
    )  # fmt: skip
    assert (a["models"], b["models"]) == (["good"], ["cheap"])
    assert (a["requests"], a["units"], b["requests"], b["share_asked"], b["share_realised"]) == (50, 50, 50, 0.5, 0.5)
    assert (a["cost_nusd_per_request"], b["cost_nusd_per_request"]) == (1_000_000, 100_000)
    assert (a["errors"], b["errors"], b["error_share"]) == (0, 10, 0.2)
    assert (a["p50_s"], a["p95_s"]) == (1.0, 1.0)
    assert b["p50_s"] < b["p95_s"]
    assert (a["feedback"]["mean"], b["feedback"]["mean"], b["feedback"]["count"]) == (0.0, 1.0, 50)


def test_units_are_counted_and_not_their_requests(tmp_path, journal):
    """One busy user in arm B is one draw: the split is as asked."""
    for number in range(40):
        journal.row(request(number, "AB"[number % 2]))
    for number in range(40, 1000):
        journal.row(request(number, "B", user="1"))
    found = report(tmp_path)
    assert found["arms"]["B"]["requests"] == 980 and found["arms"]["B"]["units"] == 20
    assert found["trusted"] and found["sample_ratio_p"] == 1.0


def test_a_split_that_came_out_otherwise_is_not_to_be_trusted(tmp_path, journal):
    for number in range(400):
        journal.row(request(number, "B" if number % 4 == 0 else "A"))
    assert not report(tmp_path)["trusted"]
    code, said = trimtab(tmp_path, "ab", "default")
    assert code == 0 and "Do not trust this comparison" in said


def test_only_the_setting_that_holds_is_compared(tmp_path, journal):
    for number in range(100):
        journal.row(request(number, "AB"[number % 2], candidate="former"))
    for number in range(100, 120):
        journal.row(request(number, "AB"[number % 2], share=0.2))
    for number in range(120, 160):
        journal.row(request(number, "AB"[number % 2]))
    found = report(tmp_path)
    assert (found["arms"]["A"]["requests"], found["setting_changed"], found["since"]) == (20, True, 1120.0)
    assert report(tmp_path, "default", (), 1150.0)["arms"]["A"]["requests"] == 5


def test_who_is_not_in_the_test_does_not_count(tmp_path, journal):
    journal.row(request(1, "A"))
    journal.row(request(2, "B", scope=Scope("t", purpose="eval")))
    journal.row(request(3, "B", route="faq"))
    off = DecisionRecord("ab", "1", "ADMIT", "continue", "switched off: quality (since then)")
    journal.row(request(4, "A", decisions=(off,)))
    journal.row(request(5, "A", route="unheard of"))
    assert report(tmp_path)["arms"]["A"]["requests"] == 1
    found = report(tmp_path, "default", ["faq"])  # the route's settings hold for all that have no table
    assert (found["arms"]["A"]["requests"], found["arms"]["B"]["requests"]) == (2, 0)
    assert report(tmp_path, "nowhere") is None


async def test_the_lever_says_what_the_report_reads():
    from test_ab import PLAN, ask, lever

    for share, arm in ((0.0, "A"), (1.0, "B")):
        for held in ("", "no verdict"):
            decision = await lever(held, share=share, gate="advisory").decide(ask(scope={"user": "ann"}), PLAN)
            match = _arms.REASON.fullmatch(decision.reason)
            assert match is not None and match[1] == arm
            assert {match[2], match[3]} == {"fast", "cheap"}
            assert bool(match[5]) == bool(held)


def test_a_test_without_a_verdict_says_so(tmp_path, journal):
    reason = "arm {} {} against {}, by user{}"
    for number, said in enumerate(("", ", gate advisory")):
        decision = DecisionRecord(
            "ab", "1", "ADMIT", "change", reason.format("B", "cheap", "fast", said), 0.1 * number, 0.5
        )
        journal.row(request(number, "B", decisions=(decision,)))
        assert report(tmp_path)["gate_advisory"] == bool(said)


def test_the_command(tmp_path, journal, monkeypatch):
    monkeypatch.delenv("TRIMTAB_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    code, said = trimtab(tmp_path, "ab", "faq")
    assert code == 0 and "[routes.faq.levers.ab]" in said
    for number in range(40):
        journal.row(request(number, "AB"[number % 2]))
    for number in range(30):
        journal.note(judged(number, 0.0))
    report(tmp_path)  # with prices
    code, said = trimtab(tmp_path, "ab", "default")
    assert code == 0, said
    for part in ("cheap (B)", "50.0%", "$0.001000", "The units split as asked", "loss +0.000", "30 pairs"):
        assert part in said, part
    code, said = trimtab(tmp_path, "ab", "default", "--json")
    assert json.loads(said)["shadow"]["pairs"] == 30
    code, said = trimtab(tmp_path, "ab", "default", "--since", "yesterday")
    assert code == 2 and "--since" in said
