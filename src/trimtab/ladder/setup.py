"""What a ladder's gateway is told: the engine's table, the levers', and which lever each rung adds."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from trimtab.config import find, load
from trimtab.errors import BadRequest
from trimtab.evals import verdicts
from trimtab.evals.gates import Verdicts
from trimtab.quality.verdict import Ruling
from trimtab.types import Scope

MODEL: Final = "smollm2-135m-instruct"  # as requests call it, and verdicts
BASELINE: Final = "baseline"
EXACT, SEMANTIC, PREFIX, QUANTIZATION, SPECULATION, ROUTING = RUNGS = (
    "exact cache",
    "semantic cache",
    "prefix reuse",
    "quantization",
    "speculation",
    "routing",
)
AGAIN: Final = "baseline again"
WITHOUT_CACHES: Final = "without response caches"
BOTH: Final = f"{SEMANTIC} and {QUANTIZATION}"
ALONE: Final = ("ngram",)  # ways to speculate that know one text; the other: all that the engine has said
SHARED: Final[Mapping[str, tuple[str, ...]]] = {"llama_cpp": ("ngram_mod",), "vllm": ()}  # by engine
_WARMED: Final = 2
_STEP: Final = 256  # llama.cpp rounds a context up to such steps
_GATED: Final = (SEMANTIC, QUANTIZATION, BOTH, SPECULATION)  # they can change answers


class Terms(msgspec.Struct, frozen=True):
    """What is climbed. Two ladders of the same terms ask the same requests under the same settings."""

    workload: str
    seed: int
    requests: int
    engine: dict[str, Any]  # its table, as the baseline has it but for `model` and `prefix_cache`
    model: str  # the weights of the baseline
    quantized: str = ""  # the weights of the quantization rung; "" where there are none
    verdicts: dict[str, str] = {}  # by rung: the file of `trimtab gate` that stands behind it
    one_slot: bool = False  # from prefix reuse on, the engine has one: all requests begin alike
    utilization: float = 0.7  # arrivals as a share of the baseline's capacity
    machine_hour_usd: float = 0.10
    routing: str = ""  # TOML that the last rung adds: further models and [levers.route]


class Setup(msgspec.Struct, frozen=True):
    """One gateway. `exact` has coalescing with it."""

    engine: dict[str, Any]
    model_name: str  # as the engine calls what it serves
    machine_hour_usd: float
    exact: bool = False
    semantic: dict[str, Any] | None = None
    warmed: int = 0  # slots that hold what requests begin with before they come
    more: str = ""

    def toml(self) -> str:
        """The gateway's configuration, but for where it listens."""
        tables: dict[str, Mapping[str, Any]] = {
            "engines.local": self.engine,
            f'models."{MODEL}"': {"engine": "local", "name": self.model_name},
            f'models."{MODEL}".price': {"machine_hour": self.machine_hour_usd},
            "levers.exact_cache": {"enabled": self.exact, "coalesce": self.exact},
        }
        if self.semantic is not None:
            tables["levers.semantic_cache"] = self.semantic
        lines = []
        for name, table in tables.items():
            # What JSON and TOML have in common is enough: texts, numbers, booleans and lists of them.
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
        return "\n".join((*lines, self.more))


def baseline(terms: Terms) -> Setup:
    """Batching as the engine does it, and nothing is reused."""
    engine = {**terms.engine, "model": terms.model, "prefix_cache": False}
    return Setup(engine, _served(terms, terms.model), terms.machine_hour_usd)


def with_rung(rung: str, setup: Setup, terms: Terms, folder: Path, longest: int) -> Setup | str:
    """The setup with one lever more, or why it may not be tried. `folder` is for a configuration to be read.

    `longest` is the most tokens that a request may take, prompt and answer together. Speculation, which has several
    ways, is `speculating`'s.
    """
    change = msgspec.structs.replace
    if rung == EXACT:
        return change(setup, exact=True)
    if rung == PREFIX:
        # Each slot would read the prefix for itself, and two requests at once are no faster than one by one. What is
        # still read is short, so that decoding alone counts: without flash attention it is faster, the more so
        # with a short context, which is the distance between the rows of values that it then reads.
        engine = {**setup.engine, "prefix_cache": True}
        if terms.one_slot:
            engine |= {"parallel": 1, "flash_attention": False, "context_tokens": -(-longest // _STEP) * _STEP}
        return change(setup, engine=engine, warmed=1 if terms.one_slot else _WARMED)
    if rung == SEMANTIC:
        return _semantic(setup, terms, folder)
    if rung == QUANTIZATION:
        return _quantized(setup, terms, folder)
    if not terms.routing:
        return "not configured: --routing FILE names further models and [levers.route]"
    return change(setup, more=terms.routing)


def speculating(way: str, setup: Setup, terms: Terms) -> Setup | str:
    """The setup with an engine that guesses tokens in this way, or why it may not be tried."""
    return _objection(SPECULATION, terms, (), (f'speculation = "{way}"',)) or drafting(way, setup)


def drafting(way: str, setup: Setup) -> Setup:
    """The same, unjudged: to see whether it pays."""
    return msgspec.structs.replace(setup, engine={**setup.engine, "speculation": way})


def without_caches(setup: Setup) -> Setup:
    """The same without stored answers."""
    return msgspec.structs.replace(setup, exact=False, semantic=None)


def _served(terms: Terms, model: str) -> str:
    """What the engine calls these weights."""
    module = find("engines", terms.engine["kind"])
    name: str = module.model_name(module.Config(model=model))
    return name


def _semantic(setup: Setup, terms: Terms, folder: Path) -> Setup | str:
    """With the settings that were judged; as a gateway would rule, which without a verdict ran it in shadow."""
    verdict = terms.verdicts.get(SEMANTIC, "")
    if not verdict:
        return f"needs a verdict of `trimtab gate`: --verdict '{SEMANTIC}=FILE'"
    return _under(verdict, setup, folder)


def _under(verdict: str, setup: Setup, folder: Path) -> Setup | str:
    """The semantic cache as a verdict's candidate had it, or why the verdict does not stand behind it."""
    judged = tomllib.loads(verdicts.read(Path(verdict)).candidate.settings).get("levers", {}).get("semantic_cache", {})
    table = {key: value for key, value in judged.items() if key not in ("gate", "verdict")} | {"verdict": verdict}
    tried = msgspec.structs.replace(setup, semantic=table)
    file = folder / "semantic.toml"
    file.write_text(tried.toml(), encoding="utf-8")
    why_not = Verdicts(load(file, os.environ), "semantic_cache").why_not(Scope("default"), MODEL)
    return f"{Path(verdict).name}: {why_not}" if why_not else tried


def _quantized(setup: Setup, terms: Terms, folder: Path) -> Setup | str:
    if not terms.quantized:
        return "this engine has no quantized weights of the model: --quantized names some"
    names = Path(terms.model).name, Path(terms.quantized).name
    if objection := _objection(QUANTIZATION, terms, names[:1], names[1:]):
        return objection
    engine = {**setup.engine, "model": terms.quantized}
    tried = msgspec.structs.replace(setup, engine=engine, model_name=_served(terms, terms.quantized))
    if setup.semantic is None or BOTH not in terms.verdicts:
        return tried
    # Two levers may each lose what the margin allows: where both were judged together, that verdict counts.
    return _objection(BOTH, terms, names[:1], names[1:]) or _under(terms.verdicts[BOTH], tried, folder)


def _objection(rung: str, terms: Terms, reference: tuple[str, ...], candidate: tuple[str, ...]) -> str:
    """Why no verdict stands behind a rung, whose two settings have to name these; "" if one does."""
    file = terms.verdicts.get(rung, "")
    if not file:
        return f"needs a verdict of `trimtab gate`: --verdict {rung}=FILE"
    found = verdicts.read(Path(file))
    name = Path(file).name
    if found.verdict.ruling is not Ruling.PASS:
        return f"{name} says {found.verdict.ruling}: {found.verdict.reason}"
    for wanted, head in ((reference, found.reference), (candidate, found.candidate)):
        for text in wanted:
            if text not in head.settings:
                return f"{name} is not about {text}"
    return ""


def verdict_behind(rung: str, chosen: Setup, terms: Terms) -> str:
    """The name of the file that stands behind a rung; "" if none has to."""
    both = rung == QUANTIZATION and chosen.semantic is not None and BOTH in terms.verdicts
    return Path(terms.verdicts.get(BOTH if both else rung, "")).name


def read_verdicts(given: tuple[str, ...]) -> dict[str, str]:
    """From "RUNG=FILE" to absolute paths by rung. Raises BadRequest."""
    found = {}
    for one in given:
        rung, _, file = one.partition("=")
        if rung not in _GATED or not file:
            raise BadRequest(f"{one!r} is not RUNG=FILE with one of {', '.join(_GATED)}", param="verdict")
        if not Path(file).is_file():
            raise BadRequest(f"no such file {file}", param="verdict")
        found[rung] = str(Path(file).absolute())
    return found
