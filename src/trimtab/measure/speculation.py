"""Does speculation pay? Each prompt is asked of engines that differ in nothing else, in turn, so that noise meets all.

What is compared is decoding alone, as the engine clocks it: seconds a token, and how many drafted tokens were accepted
a step. Greedy answers are compared in full: speculation verifies each token, but a batch of several rounds its sums
otherwise than one alone, so now and then another token wins. Such answers are counted, not called identical.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from trimtab.errors import BadRequest
from trimtab.measure.stats import quantile

BASELINE: Final = "none"
LEAST_GAIN: Final = 1.05  # of decoding speed, at the lower end of the interval; below, it is not worth its trouble
LEAST_ACCEPTED: Final = 0.5  # drafted tokens that are right, a step
DRAWS: Final = 1000


class Sample(msgspec.Struct, frozen=True):
    """One answer as the engine clocked it."""

    prompt: int
    text: str
    ttft_s: float
    decode_s: float
    tokens: int
    drafted: int
    accepted: int
    cost_usd: float | None

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first."""
        return self.decode_s / max(self.tokens, 1)


class Row(msgspec.Struct, frozen=True):
    """One way to speculate on a workload, against none; `gain` is of decoding speed, a geometric mean over prompts."""

    name: str
    workload: str
    prompts: int
    ttft_p50_s: float | None
    tpot_p50_s: float | None
    accepted_per_step: float  # in the answers for which anything was drafted: the others cost nothing
    acceptance: float | None  # of drafted tokens
    gain: float
    gain_low: float
    gain_high: float
    cost_per_request: float | None  # USD
    identical: int  # answers that are word for word those of plain decoding
    differ_at: tuple[int, ...]  # characters after which the others part
    pays: bool
    reason: str


def prompts(workload: str, count: int, seed: int) -> list[str]:
    """Of a shipped workload: texts to "copy", open questions as in a "chat", or "repeats", such that come twice."""
    rng = random.Random(f"{workload}/{seed}")
    if workload == "repeats":
        # From the end: what was asked as "chat" before would be no first time.
        once = prompts("chat", len(_ASKS) * len(_ABOUT), seed)[: -1 - (count + 1) // 2 : -1]
        return [*once, *once][:count]
    if workload == "chat":
        chosen = [f"{ask} {about}." for ask in _ASKS for about in _ABOUT]
        rng.shuffle(chosen)
        return chosen[:count]
    return [_copied(rng) for _ in range(count)]


def read_prompts(path: Path) -> list[str]:
    """Of a JSONL file of {"prompt": "..."}. Raises BadRequest naming the first bad line."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=_Line).prompt)
        except msgspec.MsgspecError as error:
            message = f'{path}, line {number}: {error}; a line should be {{"prompt": "..."}}'
            raise BadRequest(message, param="workload") from error
    if not found:
        raise BadRequest(f"{path} has no prompts", param="workload")
    return found


class _Line(msgspec.Struct):
    prompt: str


def sample(number: int, body: bytes, cost_usd: float | None) -> Sample:
    """What an engine's reply says of itself. Raises BadRequest for an engine that does not clock its answers."""
    said: dict[str, Any] = msgspec.json.decode(body)
    clocked = said.get("timings")
    if not isinstance(clocked, Mapping) or "predicted_ms" not in clocked:
        raise BadRequest("the engine does not say how long it decoded (no `timings`)", param="engine")
    return Sample(
        number,
        str(said["choices"][0]["message"]["content"]),
        clocked["prompt_ms"] / 1000,
        clocked["predicted_ms"] / 1000,
        clocked["predicted_n"],
        clocked.get("draft_n", 0),
        clocked.get("draft_n_accepted", 0),
        cost_usd,
    )


def row(name: str, workload: str, plain: Sequence[Sample], tried: Sequence[Sample], *, seed: int = 0) -> Row:
    """Compare two engines' answers to the same prompts, in the same order."""
    gains = [math.log(one.tpot_s / other.tpot_s) for one, other in zip(plain, tried, strict=True)]
    gain, low, high = _mean_interval(gains, seed)
    steps = sum(one.tokens - one.accepted for one in tried if one.drafted)
    accepted = sum(one.accepted for one in tried)
    drafted = sum(one.drafted for one in tried)
    parted = [_parts_at(one.text, other.text) for one, other in zip(plain, tried, strict=True)]
    costs = [one.cost_usd for one in tried if one.cost_usd is not None]
    per_step = accepted / max(steps, 1)
    pays, reason = _ruling(name, gain, low, per_step)
    return Row(
        name,
        workload,
        len(tried),
        quantile([one.ttft_s for one in tried], 0.5),
        quantile([one.tpot_s for one in tried], 0.5),
        per_step,
        accepted / drafted if drafted else None,
        gain,
        low,
        high,
        sum(costs) / len(costs) if costs else None,
        sum(at is None for at in parted),
        tuple(at for at in parted if at is not None),
        pays,
        reason,
    )


def best(rows: Sequence[Row]) -> str:
    """The way that pays most on a workload, "none" where none does."""
    paying = [one for one in rows if one.pays]
    return max(paying, key=lambda one: one.gain_low).name if paying else BASELINE


def _ruling(name: str, gain: float, low: float, per_step: float) -> tuple[bool, str]:
    if name == BASELINE:
        return False, "what the others are compared with"
    if per_step < LEAST_ACCEPTED:
        return False, f"refused: {per_step:.2f} drafted tokens a step are right, under {LEAST_ACCEPTED:g}"
    if low < LEAST_GAIN:
        return False, f"refused: decoding may be only {low:.2f} times as fast"
    return True, f"decodes {gain:.2f} times as fast"


def _mean_interval(logs: Sequence[float], seed: int) -> tuple[float, float, float]:
    """The geometric mean, and its 95% interval over resampled prompts."""
    rng = random.Random(seed)
    count = len(logs)
    means = sorted(sum(rng.choices(logs, k=count)) / count for _ in range(DRAWS))
    return (
        math.exp(sum(logs) / count),
        math.exp(means[round(0.025 * (DRAWS - 1))]),
        math.exp(means[round(0.975 * (DRAWS - 1))]),
    )


def _parts_at(one: str, other: str) -> int | None:
    if one == other:
        return None
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _copied(rng: random.Random) -> str:
    """A text to be written out again: what assistants do all day with tickets, code and records."""
    facts = zip(*(rng.sample(words, _SENTENCES) for words in (_THINGS, _FATES, _TOWNS)), strict=True)
    text = " ".join(f"The {thing} {fate} in {town}." for thing, fate, town in facts)
    return f"Copy this text exactly:\n\n{text}"


_SENTENCES: Final = 7
_THINGS: Final = ("lamp", "kettle", "blanket", "chair", "clock", "basket", "mirror", "drawer", "violin", "ladder")
_FATES: Final = (
    "was sold to a teacher", "came from a small shop", "stood near the window", "belongs to the baker",
    "was painted last summer", "is kept in the kitchen", "fell from the shelf", "was found under a bridge",
)  # fmt: skip
_TOWNS: Final = ("Lyon", "Cork", "Bath", "Graz", "Porto", "Turku", "Bergen", "Leeds")
_ASKS: Final = (
    "Write a short story about",
    "Explain to a child",
    "Give three unusual ideas for",
    "Describe the sound of",
)
_ABOUT: Final = (
    "a lighthouse keeper and a letter", "how bread rises", "a market at dawn", "the tides", "an old violin",
    "a town without clocks", "snow in the mountains", "a garden on a roof", "the night train", "a lost map",
)  # fmt: skip
