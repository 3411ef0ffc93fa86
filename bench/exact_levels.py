"""What chance has a small sample at the margin of passing? Summed over all of its outcomes; for `gate.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from trimtab.quality.paired import Counts, p_value

MARGIN = 0.05
Z = 1.6448536269514722  # 95% of a normal distribution


def binomial(size: int, share: float) -> np.ndarray:
    return np.array([math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(size + 1)])


def gaffke(worse: int, better: int, size: int) -> bool:
    counts = {(1.0, 1.0): worse, (-1.0, 1.0): better, (0.0, 1.0): size - worse - better}
    return p_value({key: count for key, count in counts.items() if count}, MARGIN) <= 0.05


def tango(worse: int, better: int, size: int) -> bool:
    """The score test of two paired shares, its variance by maximum likelihood at the margin (Tango 1998)."""
    low, high = 0.0, (1 - MARGIN) / 2
    for _ in range(50):
        q = (low + high) / 2
        slope = (
            worse / (q + MARGIN) + (better / q if better else 0.0) - 2 * (size - worse - better) / (1 - 2 * q - MARGIN)
        )
        low, high = (q, high) if slope > 0 else (low, q)
    return (worse - better - size * MARGIN) / math.sqrt(size * (2 * low + MARGIN - MARGIN**2)) <= -Z


def t_interval(worse: int, better: int, size: int) -> bool:
    mean = (worse - better) / size
    return mean + Z * math.sqrt(((worse + better) / size - mean**2) / (size - 1)) <= MARGIN


def exact_level(test: Callable[[int, int, int], bool], size: int) -> tuple[float, float]:
    """The greatest chance of passing binary pairs whose loss is the margin, and the share of gains where it is."""
    most, limit = [], -1
    for better in range(size + 1):
        while limit + 1 + better <= size and test(limit + 1, better, size):
            limit += 1
        most.append(min(limit, size - better))
    pairs = np.array([(worse, better) for better, top in enumerate(most) for worse in range(top + 1)])
    return _greatest(pairs, size, [(q + MARGIN, q) for q in (0.0, *np.geomspace(1e-4, (1 - MARGIN) / 2, 60))])


def _greatest(counts: np.ndarray, size: int, shares: list[tuple[float, float]]) -> tuple[float, float]:
    """The greatest chance of `counts`, shape (outcomes, 2), over trinomial shares, and the second share there."""
    if not len(counts):
        return 0.0, 0.0
    counts = np.column_stack([counts, size - counts.sum(1)])
    factorials = np.array([math.lgamma(k + 1) for k in range(size + 1)])
    ways = factorials[size] - factorials[counts].sum(1)
    found = [
        (float(np.exp(ways + counts @ np.log(np.maximum([one, two, 1 - one - two], 1e-300))).sum()), two)
        for one, two in shares
    ]
    return max(found)


def three_values(seed: int) -> tuple[float, str]:
    """The gate's exact level where losses have three random values: the greatest over 61 ways to have the mean."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([10, 20, 30, 60]))
    high = float(rng.choice([1.0, rng.uniform(0.06, 1.0)]))
    low = float(rng.choice([-1.0, 0.0, rng.uniform(-1.0, 0.04)]))
    middle = float(rng.uniform(low, high))
    counts = []
    for second in range(size + 1):
        for first in range(size - second + 1):
            grouped: Counts = {}
            for loss, count in ((high, first), (middle, second), (low, size - first - second)):
                if count:
                    grouped[loss, 1.0] = grouped.get((loss, 1.0), 0) + count
            if p_value(grouped, MARGIN) > 0.05:
                break
            counts.append((first, second))
    largest = min((MARGIN - low) / (middle - low), (high - MARGIN) / (high - middle) if high > MARGIN else 0.0, 1.0)
    seconds = np.linspace(0.0, largest, 61)
    firsts = (MARGIN - low - seconds * (middle - low)) / (high - low)
    shares = [(float(one), float(two)) for one, two in zip(firsts, seconds, strict=True) if one >= 0 and one + two <= 1]
    level, _ = _greatest(np.array(counts).reshape(-1, 2), size, shares)
    return level, f"n={size}, losses {high:.2f} {middle:.2f} {low:.2f}"


def exact_cell(size: int) -> dict[str, object]:
    row: dict[str, object] = {"part": "exact", "items": size}
    for name, test in (("gate", gaffke), ("tango", tango), ("t", t_interval)):
        row[name] = round(exact_level(test, size)[0], 5)
    return row | {"ok": row["gate"] <= 0.05 + 1e-5}


def drawn_cell(part: str, draw: Callable[[int], tuple[float, str]], designs: int) -> dict[str, object]:
    """The greatest exact level of many samples that are drawn at random."""
    level, where = max(draw(seed) for seed in range(designs))
    return {
        "part": part,
        "designs": designs,
        "gate": round(level, 5),
        "where": where,
        "ok": level <= 0.05 + 1e-5,
    }


def two_weights(seed: int) -> tuple[float, str]:
    """The gate's exact level where items have one of two weights and one of two losses: the greatest of 101 truths."""
    rng = np.random.default_rng(seed)
    heavy, light = int(rng.choice([1, 2, 5, 10, 20, 40])), int(rng.choice([5, 10, 20, 40]))
    weight = float(np.exp(rng.uniform(math.log(0.02), math.log(0.95))))
    least = float(rng.choice([0.0, -0.3, -1.0]))
    passes = np.zeros((heavy + 1, light + 1))
    for one, two in itertools.product(range(heavy + 1), range(light + 1)):
        parts = {(1.0, 1.0): one, (least, 1.0): heavy - one, (1.0, weight): two, (least, weight): light - two}
        passes[one, two] = p_value({key: count for key, count in parts.items() if count}, MARGIN) <= 0.05
    lost = (MARGIN - least) / (1 - least) * (heavy + light * weight)  # the weight that is lost on average
    chances = [
        (share, (lost - heavy * share) / (light * weight)) for share in np.linspace(0.0, min(1.0, lost / heavy), 101)
    ]
    level = max(binomial(heavy, one) @ passes @ binomial(light, two) for one, two in chances if 0 <= two <= 1)
    return float(level), f"{heavy} items of weight 1, {light} of {weight:.2f}, losses 1 and {least}"
