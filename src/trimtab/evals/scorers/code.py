"""Scorer of code: Python unit tests, run on the answer in a sandboxed child process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta, Struct

from trimtab.evals import sandbox
from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, check_texts, texts

_FENCE: Final = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON: Final = ("", "py", "python", "python3")
_LONGEST_CHARS: Final = 100_000


class Code(Struct, frozen=True):
    """Settings of "code"."""

    prefix: str = ""
    graded: bool = False
    cpu_s: Annotated[int, Meta(ge=1, le=300, description="a whole number from 1 to 300")] = 5
    wall_s: Annotated[float, Meta(gt=0, le=600, description="a number above 0, up to 600")] = 10.0
    memory_mb: Annotated[int, Meta(ge=64, le=65_536, description="a whole number from 64 to 65536")] = 512


def code_in(text: str) -> str:
    """The Python code of an answer: the first code block that defines something, else the first, else all of it."""
    blocks = [body for language, body in _FENCE.findall(text[:_LONGEST_CHARS]) if language.lower() in _PYTHON]
    defining = [body for body in blocks if re.search(r"^\s*(?:async def|def|class)\b", body, re.MULTILINE)]
    return next(iter(defining or blocks), text[:_LONGEST_CHARS])


def _check(item: Item, settings: Code) -> Iterable[Flaw]:
    flaws = list(check_texts(item, settings))
    yield from flaws
    if flaws:
        return
    tests = texts(item.reference)
    if len(tests) > sandbox.MOST_TESTS:
        yield "reference", f"has {len(tests)} tests; put some together, at most {sandbox.MOST_TESTS} can run"
    for key, code in (("options.prefix", settings.prefix), *(("reference", test) for test in tests)):
        if key == "options.prefix" and item.options.get("prefix", "").rstrip().endswith(":"):
            continue  # the head of a function that the answer goes on with
        try:
            compile(code, key, "exec")
        except (SyntaxError, ValueError) as error:
            yield key, f"is no Python: {error}"


def _score(item: Item, settings: Code, answer: Answer) -> Score:
    tests = tuple(texts(item.reference))
    program = settings.prefix + ("\n" if settings.prefix else "") + code_in(answer.text)
    ran = sandbox.run(program, sandbox.Limits(settings.cpu_s, settings.wall_s, settings.memory_mb), tests)
    if not ran.finished:
        return Score(
            0.0, f"the code {ran.problem}" if ran.problem.startswith(("took", "was", "ended")) else ran.problem
        )
    failed = [problem for problem in ran.problems if problem]
    if not failed:
        return Score(1.0, f"passed {len(tests)} test{'s' * (len(tests) != 1)}")
    value = 1 - len(failed) / len(tests) if settings.graded else 0.0
    return Score(value, f"failed {len(failed)} of {len(tests)}: {failed[0]}")


SCORERS: Final[dict[str, Scorer]] = {
    "code": Scorer(
        "The Python code of the answer passes unit tests, in a child process with limits.",
        "test code that raises (assert ...), or a list of such tests", Code,
        {
            "prefix": "code before the answer, such as imports or the head of the function",
            "graded": "the score is the share of tests passed (default false: all or nothing)",
            "cpu_s": "processor seconds (default 5)",
            "wall_s": "seconds by the clock (default 10)",
            "memory_mb": "megabytes of address space (default 512)",
        },
        _check, _score,
    )
}  # fmt: skip
