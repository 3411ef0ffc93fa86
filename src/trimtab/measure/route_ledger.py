"""Labels to train a router on, from a gateway's own traffic: verdicts of its ledger on requests that it captured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from trimtab.errors import BadRequest
from trimtab.measure.route_data import Examples, cost_words
from trimtab.measure.route_training import Labels
from trimtab.protocols.conversation import last_turn
from trimtab.routing import questions
from trimtab.routing.data import Answer

if TYPE_CHECKING:
    from trimtab.stores.captures_db import Captured
    from trimtab.stores.ledger_reader import Reader
    from trimtab.stores.sealing import Keyring

LEVERS: Final = ("ab", "route")  # whose verdicts compare a cheap model's answer with the reference's
_MILLION: Final = 1e6


class _Asked(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"[]")


class Wanted(msgspec.Struct, frozen=True):
    """Whose verdicts: "" is any, if there is only one."""

    tenant: str = ""
    route: str = ""
    weak: str = ""
    strong: str = ""


def of_ledger(
    ledger: Reader, captures: Path, keys: Keyring, wanted: Wanted, prices: tuple[float, ...] | None = None
) -> Labels:
    """Labels from shadow verdicts, joined by request with what clients sent.

    The reference counts as 1, an answer that is as good too, a worse one 0. Raises BadRequest where there are none, and
    where several tenants or pairs of models have some and none is named.
    """
    where = {name: value for name in ("tenant", "route") if (value := getattr(wanted, name))}
    rows = [
        row
        for row in ledger.labels(LEVERS, where)
        if wanted.weak in ("", row["model"]) and wanted.strong in ("", row["asked"]) and row["model"] != row["asked"]
    ]
    if not rows:
        raise BadRequest(
            "the ledger has no verdict on a cheaper model's answer; [routes.NAME.levers.ab] sends a share to one, and "
            "[routes.NAME.shadow] has its answers judged",
            param="ledger",
        )
    _require_one(rows, ("tenant",), "--tenant")
    _require_one(rows, ("model", "asked"), "--weak and --strong")
    losses = {row["request_id"]: float(row["loss"]) for row in rows}
    found = _captured(captures, keys, where | {"tenant": rows[0]["tenant"]}, losses)
    if not found:
        raise BadRequest(
            f"none of the {len(rows):,} requests with a verdict was captured as text; [routes.NAME.capture] keeps them",
            param="ledger",
        )
    prompts = tuple(text for text, _ in found)
    strong = np.ones(len(found))
    loss = np.array([losses[row.id] for _, row in found])
    whole = Examples(
        prompts,
        tuple(map(questions.key, prompts)),
        tuple(row.route for _, row in found),
        strong - loss,
        strong,
        (Answer(),) * len(found),
        None,
        np.full(len(found), np.nan),
        _costs([row for _, row in found], prices),
    )
    words = cost_words(None) if prices is None else "recorded tokens at the given prices, the strong answer as long"
    notes = ["scores are against the reference's answer, which counts as 1"]
    if left_out := len(rows) - len(found):
        notes.append(f"{left_out:,} verdicts left out: their requests were not captured as text")
    source = f"verdicts on {len(found):,} requests of the tenant {rows[0]['tenant']}"
    return Labels(whole, rows[0]["model"], rows[0]["asked"], "", source, words, tuple(notes))


def _require_one(rows: Sequence[Mapping[str, Any]], names: tuple[str, ...], options: str) -> None:
    """Raises BadRequest that lists what there is, where it is more than one."""
    there = sorted({tuple(str(row[name]) for name in names) for row in rows})
    if len(there) > 1:
        listed = ", ".join(" before ".join(one) for one in there)
        raise BadRequest(f"there are verdicts of several: {listed}; choose with {options}", param="ledger")


def _captured(
    path: Path, keys: Keyring, where: Mapping[str, str], wanted: Mapping[str, float]
) -> list[tuple[str, Captured]]:
    from trimtab.stores.captures_db import Reader

    found = []
    with Reader(path) as reader:
        for row in reader.rows(where):
            if row.id not in wanted:
                continue
            body = keys.open(row.key_id, row.body, row.id)
            text = last_turn(msgspec.json.decode(body, type=_Asked).messages)
            if text:
                found.append((text, row))
    return found


def _costs(rows: Sequence[Captured], prices: tuple[float, ...] | None) -> dict[str, Any]:
    nothing = np.zeros(len(rows))
    if prices is None:
        return {"weak": nothing, "strong": np.ones(len(rows)), "check": nothing}
    tokens = np.array([(row.input_tokens, row.output_tokens) for row in rows], dtype=np.float64)
    weak, strong = tokens @ np.array(prices[:2]), tokens @ np.array(prices[2:4])
    return {"weak": weak / _MILLION, "strong": strong / _MILLION, "check": nothing}
