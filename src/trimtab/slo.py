"""Service level objectives: when a request was good, how fast its error budget burns, and when that is an alarm. Pure.

A share of a route's requests must be good over `PERIOD_S`; the rest is the error budget. The burn rate is the share of
bad requests over a window, divided by the share that the objective allows: at 1 the budget lasts exactly the period. An
alarm needs a long window (it matters) and a short one (it goes on) above its rate. Source of windows and rates:
Google's Site Reliability Workbook, chapter "Alerting on SLOs".
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from trimtab.errors import BadRequest, Overloaded
from trimtab.ledger import per_token_s
from trimtab.types import End, Record

PERIOD_S: Final = 30 * 86_400
WINDOWS_S: Final = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 6 * 3600, "3d": 3 * 86_400, "30d": PERIOD_S}
_LEAST_BAD = 5  # in the long window: one failure in a quiet night is no alarm
_MOST_SHARE = 0.5  # no objective is so low that more than half of the requests must be bad before anybody hears of it
_CALM = 0.5  # an alarm ends when the short window is below this share of its rate, so that it does not flutter


class Slo(msgspec.Struct, frozen=True):
    """Upper limits in seconds for one request, None for none."""

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    total_s: float | None = None

    def met(self, ttft_s: float | None, tpot_s: float | None, total_s: float) -> bool:
        """Whether an answer that came whole was within all limits; one on what it does not have is not met."""
        pairs = ((self.ttft_s, ttft_s), (self.tpot_s, tpot_s), (self.total_s, total_s))
        return all(limit is None or (value is not None and value <= limit) for limit, value in pairs)


# The use cases' targets: what users of such applications wait for.
SLOS: Final = {
    "chat": Slo("chat", ttft_s=0.5),
    "completion": Slo("completion", ttft_s=0.1),
    "batch": Slo("batch", total_s=30.0),
}
_FIELDS: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "total_s"}
_UNITS_S: Final = {"ms": 0.001, "s": 1.0}


def parse_slo(text: str) -> Slo:
    """A use case's name, or limits such as "ttft=500ms,tpot=50ms,e2e=10s". Raises BadRequest."""
    if text in SLOS:
        return SLOS[text]
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(ttft|tpot|e2e)\s*(?:=|<=?)\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", part)
        if match is None:
            raise BadRequest(
                f"{part!r} is no limit; name a use case ({', '.join(SLOS)}) or say ttft=500ms,tpot=50ms,e2e=10s",
                param="slo",
            )
        limits[_FIELDS[match[1]]] = float(match[2]) * _UNITS_S[match[3]]
    return Slo(text.replace(" ", ""), **limits)


class Objective(msgspec.Struct, frozen=True):
    """`share` of a route's requests are to be good by `slo`."""

    slo: Slo
    share: float


class Rule(msgspec.Struct, frozen=True):
    """An alarm: both windows (names of `WINDOWS_S`) burn at `rate` or more."""

    severity: str
    long: str
    short: str
    rate: float


RULES: Final = (
    Rule("page", "1h", "5m", 14.4),  # 2% of the period's budget in an hour
    Rule("page", "6h", "30m", 6.0),  # 5% in six hours
    Rule("ticket", "3d", "6h", 1.0),  # 10% in three days
)


class Alarm(msgspec.Struct, frozen=True):
    """An alarm that began or ended."""

    route: str
    rule: Rule
    firing: bool
    at: float  # unix seconds
    objective: Objective
    burn_rates: dict[str, float]  # by window

    @property
    def text(self) -> str:
        """One line for a person."""
        rule, rates = self.rule, self.burn_rates
        what = "burns its error budget" if self.firing else "no longer burns its error budget"
        return (
            f"{rule.severity}: route {self.route} {what}: {rates[rule.short]:.1f} times the allowed rate over "
            f"{rule.short}, {rates[rule.long]:.1f} over {rule.long} (alarm at "
            f"{rate_of(rule, self.objective.share):.1f}); the objective is {self.objective.share:.2%} within "
            f"{self.objective.slo.name}"
        )


def judge(record: Record, slo: Slo) -> bool | None:
    """Whether a request was good; None where it says nothing about the service.

    That are requests whose client was wrong (4xx but 408 and 429), left before a limit had passed, or used up its own
    share; one that was refused because there was too much to do is bad. Limits on tokens are for streams.
    """
    if record.end == End.REFUSED:
        return False if record.status == Overloaded.status else None
    ttft_s = tpot_s = 0.0
    if record.stream:
        ttft_s = record.total_s if record.ttft_s is None else record.ttft_s
        tpot_s = per_token_s(record) or 0.0
    good = slo.met(ttft_s, tpot_s, record.total_s)
    if record.end == End.OK:
        return good
    if record.end == End.CANCELLED:
        return None if good else False
    if 400 <= record.status < 500 and record.status not in (408, 429):
        return None
    return False


def burn_rate(good: int, bad: int, share: float) -> float:
    """How many times faster than allowed the budget is spent; 0 without requests."""
    return bad / (good + bad) / (1 - share) if bad else 0.0


def rate_of(rule: Rule, share: float) -> float:
    """The rule's rate for an objective."""
    return min(rule.rate, _MOST_SHARE / (1 - share))


def fires(rule: Rule, share: float, counts: dict[str, tuple[int, int]], *, firing: bool) -> bool:
    """Whether the alarm is on, given (good, bad) by window and whether it was on."""
    rate = rate_of(rule, share)
    short, long = (burn_rate(*counts[window], share) for window in (rule.short, rule.long))
    if firing:
        return short >= _CALM * rate
    return counts[rule.long][1] >= _LEAST_BAD and short >= rate and long >= rate
