"""A judge on trial: does a model that compares answers agree with labels, and with itself when places are swapped?

Agreement is Cohen's kappa: 0 is what guessing in the same proportions reaches, 1 is perfect.
Source: Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement (1960).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from trimtab.errors import BadRequest
from trimtab.evals.answers import Answer
from trimtab.evals.scorers.judge import better, judge_requests
from trimtab.evals.suite import Item

Choice = Literal["a", "b", "tie"]

MIN_KAPPA: Final = 0.4  # "moderate" begins there (Landis and Koch 1977); under it a verdict is mostly noise
_RESAMPLED: Final = 1000
_SWAPPED: Final[dict[str, Choice]] = {"a": "b", "b": "a", "tie": "tie"}


class Labelled(msgspec.Struct, frozen=True):
    """Two answers to a question, and which is better by somebody who knows."""

    question: str
    a: str
    b: str
    better: Choice


class Trial(msgspec.Struct, frozen=True):
    """What came out. Shares are of 1.

    `kappa` has a 95% bootstrap interval. `swapped_differs`: pairs whose verdict changes with the places. `first` and
    `second`: replies that prefer the answer in that place. `unread`: replies that say neither, which count as ties.
    """

    model: str
    pairs: int
    agreement: float
    kappa: float
    kappa_low: float
    kappa_high: float
    swapped_differs: float
    first: float
    second: float
    unread: float
    min_kappa: float
    trusted: bool
    labels_sha256: str
    settings: str = ""


def read_labels(path: Path) -> list[Labelled]:
    """A JSONL file of {"question", "a", "b", "better"}. Raises BadRequest naming the first bad line."""
    decoder, found = msgspec.json.Decoder(Labelled), []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}", param="labels") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            shape = '{"question": "...", "a": "...", "b": "...", "better": "a", "b" or "tie"}'
            raise BadRequest(f"{path}, line {number}: {error}; a line should be {shape}", param="labels") from None
    if len({one.better for one in found}) < 2:
        raise BadRequest(f"{path} holds labels of one kind only: agreement with them says nothing", param="labels")
    return found


def requests(labelled: Labelled, model: str) -> list[dict[str, Any]]:
    """The two requests about a pair, places swapped in the second."""
    item = Item("pair", "", ({"role": "user", "content": labelled.question},), "judge")
    one, other = (Answer(text, (), "stop") for text in (labelled.a, labelled.b))
    return judge_requests(item, one, model, other=other)


def outcome(
    model: str,
    labels: Sequence[Labelled],
    replies: Sequence[tuple[str, str]],
    min_kappa: float,
    labels_sha256: str,
    settings: str = "",
) -> Trial:
    """What the replies of `requests`, a couple a pair, come to."""
    read = [(better(first), better(second)) for first, second in replies]
    verdicts: list[Choice] = []
    for first, second in read:
        straight, turned = first or "tie", _SWAPPED[second or "tie"]
        verdicts.append(straight if straight == turned else "tie")
    truth = [one.better for one in labels]
    rng, count = random.Random(0), len(truth)
    resampled = sorted(
        kappa([truth[n] for n in chosen], [verdicts[n] for n in chosen])
        for chosen in (rng.choices(range(count), k=count) for _ in range(_RESAMPLED))
    )
    low, high = resampled[round(0.025 * _RESAMPLED)], resampled[round(0.975 * _RESAMPLED) - 1]
    places = Counter(word for couple in read for word in couple)
    differs = sum((first or "tie") != _SWAPPED[second or "tie"] for first, second in read)
    return Trial(
        model,
        count,
        sum(a == b for a, b in zip(truth, verdicts, strict=True)) / count,
        kappa(truth, verdicts),
        low,
        high,
        differs / count,
        places["a"] / (2 * count),
        places["b"] / (2 * count),
        places[None] / (2 * count),
        min_kappa,
        low >= min_kappa,
        labels_sha256,
        settings,
    )


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's, -1 to 1; 0 where both say one and the same thing always, for that shows nothing."""
    count = len(one)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / count
    ours, theirs = Counter(one), Counter(other)
    by_chance = sum(ours[word] * theirs[word] for word in ours) / count**2
    return 0.0 if by_chance >= 1.0 else (agreed - by_chance) / (1 - by_chance)


def trusted(folder: Path, model: str) -> str:
    """Why a judge may not decide a gate, "" if its trial in this folder says that it may."""
    path = path_of(folder, model)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Trial)
    except OSError:
        return f"the judge {model} has had no trial: `trimtab eval judge --labels FILE` measures it"
    except msgspec.MsgspecError as error:
        return f"{path} is no trial of a judge: {error}"
    if not found.trusted:
        return (
            f"the judge {model} agrees with labels by a kappa of {found.kappa:.2f} ({found.kappa_low:.2f} to "
            f"{found.kappa_high:.2f}); it takes {found.min_kappa:g} to be trusted"
        )
    return ""


def path_of(folder: Path, model: str) -> Path:
    """Where a judge's trial is kept."""
    return folder / "judges" / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in model)}.json"
