"""What makes two prompts the same question: the words of the question, without options, labels and wrapping."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

# A line that opens with a letter, or with a letter in brackets, and a mark; three of them, A first, are options.
_OPTION: Final = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(.*)$", re.MULTILINE)
_FEWEST_OPTIONS: Final = 2
_LEAD: Final = re.compile(r"^\s*(?:q|question|problem)\s*[:.]\s*", re.IGNORECASE)
_TAIL: Final = re.compile(r"(?:^|\n)[^\n]*\\boxed\{[^\n]*\s*$|\b(?:a|answer)\s*:\s*$", re.IGNORECASE)
_WORDS: Final = re.compile(r"\w+")


class Question(msgspec.Struct, frozen=True):
    """A prompt in two parts: the question itself, and the options that it offers (none for an open question)."""

    stem: str
    options: tuple[str, ...]


def parse(prompt: str) -> Question:
    """The question and its options. Options are lines "A. ...", "(B) ..." and so on, in order, at the prompt's end."""
    found = list(_OPTION.finditer(prompt))
    # The last run that starts with A: earlier runs belong to the question.
    for start in range(len(found) - 1, -1, -1):
        if found[start][1] == "A":
            run = found[start:]
            if len(run) >= _FEWEST_OPTIONS and [one[1] for one in run] == [chr(65 + n) for n in range(len(run))]:
                return Question(prompt[: run[0].start()], tuple(one[2] for one in run))
            break
    return Question(prompt, ())


def key(prompt: str) -> str:
    """Equal for two prompts that ask the same, whatever their case, marks, options, "Question:" or "\\boxed" line."""
    stem = _LEAD.sub("", parse(prompt).stem)
    stem = _TAIL.sub("", stem)
    folded = " ".join(_WORDS.findall(unicodedata.normalize("NFKC", stem).casefold()))
    return folded or unicodedata.normalize("NFKC", prompt).casefold().strip()
