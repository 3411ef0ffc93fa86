"""Sends a suite's items through a gateway and scores what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec

from trimtab.evals import scorers
from trimtab.evals.answers import Answer, ToolCall
from trimtab.evals.client import Client, Incomplete, Refused
from trimtab.evals.runs import Answered, RunFile
from trimtab.evals.suite import Item

JUDGE: Final = "judge"  # the scorer that asks a model


class Setting(msgspec.Struct, frozen=True):
    """How items are asked."""

    model: str
    seed: int = 0
    repeats: int = 1
    concurrency: int = 8
    max_cost_usd: float | None = None
    judge_model: str = ""


async def in_lines(count: int, line: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run so many at once; the first one's error ends all, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(line())
    except ExceptionGroup as found:
        raise found.exceptions[0] from None


class Runner:
    """One setting's answers."""

    def __init__(self, client: Client, setting: Setting, file: RunFile) -> None:
        self._client = client
        self._setting = setting
        self._file = file
        self.spent_usd = sum(one.cost_usd or 0.0 for one in file.answers.values())

    def missing(self, items: Sequence[Item]) -> list[tuple[Item, int]]:
        """What of these items is not answered yet, by repeat."""
        wanted = [(item, repeat) for repeat in range(self._setting.repeats) for item in items]
        return [(item, repeat) for item, repeat in wanted if (item.id, repeat) not in self._file.answers]

    async def run(self, items: Sequence[Item], tick: Callable[[], None]) -> None:
        """Ask what is not answered yet; `tick` after each. Raises Incomplete when the model is out or the money is."""
        waiting = iter(self.missing(items))

        async def one_line() -> None:
            for item, repeat in waiting:
                self._check_cost()
                await self._answer(item, repeat)
                tick()

        await in_lines(self._setting.concurrency, one_line)

    def _check_cost(self) -> None:
        limit = self._setting.max_cost_usd
        if limit is not None and self.spent_usd >= limit:
            raise Incomplete(f"{self.spent_usd:.4f} USD are spent, and --max-cost allows {limit:g}")

    async def _answer(self, item: Item, repeat: int) -> None:
        try:
            got = await self._client.ask(self._fields(item, repeat), item.id)
        except Refused as refused:
            said = f"refused: {refused.message}"
            self._file.add(Answered(item.id, item.stratum, 0.0, said, "", repeat, item.weight, finish="refused"))
            return
        self.spent_usd += got.cost_usd or 0.0
        choice, usage = got.reply.choices[0], got.reply.usage
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ())
        answer = Answer(got.text, calls, choice.finish_reason or "")
        score = await self._score(item, answer)
        self._file.add(
            Answered(
                item.id,
                item.stratum,
                score.value,
                score.why,
                answer.text,
                repeat,
                item.weight,
                calls,
                answer.finish,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.completion_tokens,
                got.cost_usd,
                got.total_s,
                got.cache,
                got.request_id,
            )
        )

    async def _score(self, item: Item, answer: Answer) -> scorers.Score:
        if item.scorer != JUDGE:
            return await asyncio.to_thread(scorers.score, item, answer)
        texts = []
        for fields in scorers.judge_requests(item, answer, self._setting.judge_model):
            got = await self._client.ask(fields, f"the judge of {item.id}")
            self.spent_usd += got.cost_usd or 0.0
            texts.append(got.text)
        score = scorers.judge_score(item, texts)
        if score is None:
            raise Incomplete(f"the judge {self._setting.judge_model} gave no score of {item.id}: {texts[0][:80]!r}")
        return score

    def _fields(self, item: Item, repeat: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self._setting.model,
            "messages": list(item.messages),
            "temperature": 0,
            "seed": self._setting.seed + repeat,
        }
        if item.tools:
            fields["tools"] = list(item.tools)
        return fields | item.request
