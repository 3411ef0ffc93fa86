"""Perplexity of a text: which tokens are guessed from what, and how two models compare."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trimtab.engines.llama_cpp.perplexity import SCORED, WINDOW, losses, perplexity, times, windows_of
from trimtab.errors import BadRequest


class Model:
    """Finds every token as likely as `share` says; a text is one token a character."""

    def __init__(self, share: float, half: int = 0) -> None:
        self.share, self.half = share, half
        self.guessed: list[tuple[int, int]] = []  # the first token it saw, and the one it was made to choose

    def __call__(self, path: str, /, **fields: Any) -> Any:
        if path == "/tokenize":
            return {"tokens": [ord(one) for one in fields["content"]]}
        ((token, bias),) = fields["logit_bias"]
        assert bias > 100 and fields["n_predict"] == 1 and fields["temperature"] == 0
        assert token == fields["prompt"][-1] + 1  # of the text below: what follows
        self.guessed.append((fields["prompt"][0], token))
        if token == self.half:  # ends inside a character
            return {"content": "\ufffd"}
        return {"completion_probabilities": [{"id": token, "logprob": math.log(self.share)}]}


TEXT = "".join(map(chr, range(1000, 1000 + 2 * WINDOW + 7)))


def test_the_second_half_of_each_window_is_guessed() -> None:
    model, ticks = Model(0.25), []
    found = losses(model, windows_of(model, TEXT, 2), lambda: ticks.append(1))
    assert len(found) == len(ticks) == 2 * SCORED
    assert perplexity(found) == pytest.approx(4)
    first, last = 1000 + WINDOW - SCORED, 1000 + WINDOW
    assert model.guessed[:SCORED] == [(1000, token) for token in range(first, last)]
    assert model.guessed[SCORED:] == [(1000 + WINDOW, token + WINDOW) for token in range(first, last)]


def test_a_token_that_ends_inside_a_character_is_left_out() -> None:
    model = Model(0.25, half=1000 + WINDOW - 1)
    assert len(losses(model, windows_of(model, TEXT, 2), lambda: None)) == 2 * SCORED - 1


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(BadRequest, match="1031 tokens, 1536 are needed"):
        windows_of(Model(0.5), TEXT, 3)


def test_models_are_compared_token_by_token() -> None:
    easy_and_hard = [0.1, 9.0] * 50
    assert times(easy_and_hard, easy_and_hard) == (1, 1, 1)
    worse = [loss + 0.1 for loss in easy_and_hard]
    assert times(worse, easy_and_hard) == pytest.approx((math.exp(0.1),) * 3)
    found = times([loss + 0.1 * (n % 4 > 1) for n, loss in enumerate(easy_and_hard)], easy_and_hard)
    assert 1 < found.low < found.value < found.high < math.exp(0.1)
