"""Sends a suite's items through a gateway and scores what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from trimtab.errors import TrimtabError
from trimtab.evals import scorers
from trimtab.evals.answers import Answer, ToolCall
from trimtab.evals.runs import Answered, RunFile
from trimtab.evals.suite import Item
from trimtab.transport import Origin, header_lines

PATH: Final = "/chat/completions"
JUDGE: Final = "judge"  # the scorer that asks a model
_CONNECT_S: Final = 5.0
_MOST_BYTES: Final = 64 << 20
_TRIES: Final = 3
_PAUSE_S: Final = 1.0
_REFUSALS: Final = (400, 413, 422)  # of this very request: an answer that is worth nothing. Others: the model is out
_SAID_CHARS: Final = 300


class Incomplete(TrimtabError):
    """The run stopped before all items were answered. What was answered is kept, and the same command goes on."""


class Setting(msgspec.Struct, frozen=True):
    """How items are asked."""

    model: str
    workflow: str  # its rows in the ledger
    seed: int = 0
    repeats: int = 1
    concurrency: int = 8
    deadline_s: float = 300.0
    max_cost_usd: float | None = None
    judge_model: str = ""


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: tuple[_Call, ...] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Reply(msgspec.Struct):
    choices: tuple[_Choice, ...]
    usage: _Usage | None = None


_REPLY: Final = msgspec.json.Decoder(_Reply)


class Runner:
    """One setting's answers. Create it inside the event loop that uses it."""

    def __init__(self, url: str, headers: Sequence[tuple[bytes, bytes]], setting: Setting, file: RunFile) -> None:
        self._origin = Origin(url)
        ours = [(b"x-trimtab-purpose", b"eval"), (b"x-trimtab-workflow", setting.workflow.encode())]
        self._head = header_lines([(b"content-type", b"application/json"), *ours, *headers])
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

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._setting.concurrency):
                    group.create_task(one_line())
        except ExceptionGroup as found:
            raise found.exceptions[0] from None

    async def close(self) -> None:
        """Drop the connections."""
        await self._origin.close()

    def _check_cost(self) -> None:
        limit = self._setting.max_cost_usd
        if limit is not None and self.spent_usd >= limit:
            raise Incomplete(f"{self.spent_usd:.4f} USD are spent, and --max-cost allows {limit:g}")

    async def _answer(self, item: Item, repeat: int) -> None:
        try:
            reply, cost_usd, headers = await self._ask(self._fields(item, repeat), item.id)
        except _Refused as refused:
            said = f"refused: {refused.message}"
            self._file.add(Answered(item.id, item.stratum, 0.0, said, "", repeat, item.weight, finish="refused"))
            return
        message = reply.choices[0].message
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in message.tool_calls or ())
        answer = Answer(message.content or message.refusal or "", calls, reply.choices[0].finish_reason or "")
        score = await self._score(item, answer)
        usage = reply.usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
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
                details.cached_tokens or 0,
                usage.completion_tokens,
                cost_usd,
                headers["total_s"],
                headers["cache"],
                headers["request_id"],
            )
        )

    async def _score(self, item: Item, answer: Answer) -> scorers.Score:
        if item.scorer != JUDGE:
            return await asyncio.to_thread(scorers.score, item, answer)
        texts = []
        for fields in scorers.judge_requests(item, answer, self._setting.judge_model, other=None):
            reply, _, _ = await self._ask(fields, item.id)
            texts.append(reply.choices[0].message.content or "")
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

    async def _ask(self, fields: dict[str, Any], what: str) -> tuple[_Reply, float | None, dict[str, Any]]:
        body = msgspec.json.encode(fields)
        said = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(self._setting.deadline_s):
                    got = await self._once(body)
            except (TrimtabError, OSError, TimeoutError, msgspec.MsgspecError) as error:
                if isinstance(error, _Refused) and error.status in _REFUSALS:
                    raise
                said = str(error) or type(error).__name__
            else:
                self.spent_usd += got[1] or 0.0
                return got
        raise Incomplete(f"{what} was not answered: {said}")

    async def _once(self, body: bytes) -> tuple[_Reply, float | None, dict[str, Any]]:
        began = asyncio.get_running_loop().time()
        reply = await self._origin.request("POST", self._origin.base_path + PATH, self._head, body, _CONNECT_S)
        try:
            data = await reply.read(_MOST_BYTES)
        finally:
            reply.abort()
        if reply.status != 200:
            raise _Refused(reply.status, data)
        decoded = _REPLY.decode(data)
        if not decoded.choices:
            raise _Refused(reply.status, data)
        cost = reply.header(b"x-trimtab-cost-usd")
        return (
            decoded,
            float(cost) if cost else None,
            {
                "total_s": asyncio.get_running_loop().time() - began,
                "cache": reply.header(b"x-trimtab-cache"),
                "request_id": reply.header(b"x-trimtab-request-id"),
            },
        )


class _Refused(TrimtabError):
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = body[:_SAID_CHARS].decode(errors="replace")
        super().__init__(f"status {status}: {said}")
