"""What an engine says of its own work beside the answer: the `timings` of llama.cpp's server.

Other engines that speak OpenAI's dialect report token counts only. A figure that is no count or time is not believed.

Source: the replies of llama.cpp's server (`prompt_ms`, `predicted_ms`, `draft_n`, `draft_n_accepted`).
"""

from __future__ import annotations

import msgspec

from trimtab.types import NO_WORK, EngineWork

ABSENT = msgspec.Raw()
"""In place of `timings` where a reply has none."""

_MOST_MS = 1e12
_MOST_TOKENS = 1 << 40


class _Timings(msgspec.Struct, frozen=True, gc=False):
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    draft_n: int | None = None  # left out where nothing was drafted
    draft_n_accepted: int | None = None


_TIMINGS = msgspec.json.Decoder(_Timings)


def read_timings(raw: msgspec.Raw) -> EngineWork:
    """The engine's figures from the JSON of a reply's `timings`; never raises for what came in a valid reply."""
    if raw is ABSENT:
        return NO_WORK
    try:
        said = _TIMINGS.decode(raw)
    except msgspec.DecodeError:
        return NO_WORK
    drafted, accepted = said.draft_n, said.draft_n_accepted
    if drafted is None or accepted is None or not 0 <= accepted <= drafted < _MOST_TOKENS:
        drafted = accepted = None
    return EngineWork(_seconds(said.prompt_ms), _seconds(said.predicted_ms), drafted, accepted)


def _seconds(ms: float | None) -> float | None:
    return ms / 1000 if ms is not None and 0 <= ms < _MOST_MS else None
