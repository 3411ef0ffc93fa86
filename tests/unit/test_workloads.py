"""The workloads of the ladder that ask about passages, run an agent's sessions, and chat."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import pytest

from trimtab.measure.workloads import Workload, agent, body, chat, gaps, rag

MODULES = {"rag": rag, "agent": agent, "chat": chat}
MOST = {"rag": rag.MAX_REQUESTS, "agent": 102, "chat": 80}
NAMES = tuple(MODULES)
# The engine's places hold some 1,500 tokens. English has about four characters a token here, at worst three and a half.
MOST_CHARS = 1450 * 3.5


def made(name: str, seed: int = 7, count: int | None = None) -> Workload:
    module = MODULES[name]
    make: Callable[[int, int], Workload] = module.workload
    return make(seed, module.COUNT if count is None else count)


def bodies(work: Workload) -> list[bytes]:
    return [call.body for call in work.calls("m", 2.0)]


def messages(fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in fields["messages"]]


def shared(left: Sequence[object], right: Sequence[object]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@pytest.mark.parametrize("name", NAMES)
class TestEveryWorkload:
    def test_the_same_arguments_make_the_same_bytes_and_times(self, name: str) -> None:
        assert made(name) == made(name)
        assert bodies(made(name)) == bodies(made(name))

    def test_another_seed_asks_in_another_order(self, name: str) -> None:
        assert bodies(made(name, seed=7)) != bodies(made(name, seed=8))
        assert made(name, seed=7).gaps != made(name, seed=8).gaps

    @pytest.mark.parametrize("count", [1, 2, 17])
    def test_it_has_the_size_asked_for(self, name: str, count: int) -> None:
        work = made(name, count=count)
        assert (len(work.asked), len(work.gaps), len(work.calls("m", 1.0))) == (count, count - 1, count)

    def test_its_size_ends_where_the_data_does(self, name: str) -> None:
        assert len(made(name, count=MOST[name]).asked) == MOST[name]
        for count in (0, -1, MOST[name] + 1):
            with pytest.raises(ValueError, match=f"from 1 to {MOST[name]} requests, not {count}"):
                made(name, count=count)

    def test_gaps_are_1_on_average(self, name: str) -> None:
        work = made(name)
        assert math.isclose(sum(work.gaps) / len(work.gaps), 1.0)
        assert work.gaps == gaps(7, len(work.asked) - 1)
        assert min(work.gaps) >= 0 and len(set(work.gaps)) > 10

    def test_bodies_are_chat_completions(self, name: str) -> None:
        work = made(name)
        for sent in (*bodies(work), *(body("m", fields) for fields in work.warm)):
            request = json.loads(sent)
            roles = [message["role"] for message in request["messages"]]
            assert roles[0] == "system" and roles[-1] == "user"
            assert all(a != b for a, b in itertools.pairwise(roles))
            assert all(message["content"].strip() for message in request["messages"])
            assert 1 <= request["max_tokens"] <= 48
            assert request["model"] == "m" and request["stream"] and request["temperature"] == 0

    def test_prompts_and_answers_fit_a_place_of_the_engine(self, name: str) -> None:
        for one in made(name, count=MOST[name]).asked:
            said = messages(one.fields)
            if name == "agent":  # every word there is one token; a message costs five more
                tokens = sum(len(text.split()) + 6 for _, text in said) + one.fields["max_tokens"]
                assert tokens < 1450
            else:
                assert sum(len(text) for _, text in said) < MOST_CHARS

    def test_what_it_warms_is_how_every_request_begins(self, name: str) -> None:
        work = made(name)
        for fields in work.warm:
            (role, system), (_, question) = messages(fields)
            assert fields["max_tokens"] == 1 and len(question) < 40
            assert {messages(one.fields)[0] for one in work.asked} == {(role, system)}
        assert bool(work.warm) is (name != "chat")

    def test_it_says_what_is_real(self, name: str) -> None:
        assert made(name).name == name
        assert "Real: " in made(name).about


class TestRag:
    def test_a_question_comes_after_its_passage_and_two_others(self) -> None:
        known = rag.collection()
        for one in made("rag").asked:
            passage = one.label.partition("/")[0]
            text = messages(one.fields)[1][1]
            assert known.passages[passage] in text
            assert sum(other in text for other in known.passages.values()) == 3

    def test_questions_on_a_passage_share_all_that_is_before_the_question(self) -> None:
        before: dict[str, set[str]] = {}
        asked: dict[str, set[str]] = {}
        for one in made("rag").asked:
            text, _, question = messages(one.fields)[1][1].rpartition("Question: ")
            before.setdefault(one.label.partition("/")[0], set()).add(text)
            asked.setdefault(one.label.partition("/")[0], set()).add(question)
        assert all(len(texts) == 1 for texts in before.values())
        assert max(len(questions) for questions in asked.values()) > 1
        assert len(set.union(*before.values())) == len(before)

    def test_requests_are_the_same_to_the_byte_exactly_if_their_label_is(self) -> None:
        work = made("rag")
        pairs = set(zip(work.groups, (one.label for one in work.asked), strict=True))
        assert len(pairs) == len(set(work.groups)) == len({label for _, label in pairs})
        assert 0.2 < 1 - len(pairs) / len(work.asked) < 0.7

    def test_popularity_follows_zipf_and_another_seed_likes_other_passages(self) -> None:
        def counts(seed: int) -> list[tuple[int, str]]:
            asked = [one.label.partition("/")[0] for one in made("rag", seed, rag.MAX_REQUESTS).asked]
            return sorted(((asked.count(name), name) for name in set(asked)), reverse=True)

        weights = [(rank + 1) ** -rag.ZIPF_EXPONENT for rank in range(25)]
        for seed in range(5):
            assert counts(seed)[0][0] / rag.MAX_REQUESTS == pytest.approx(weights[0] / sum(weights), abs=0.07)
        assert len({counts(seed)[0][1] for seed in range(5)}) > 1

    def test_the_data_are_what_their_sources_say(self) -> None:
        known = rag.collection()
        assert (len(known.passages), len(known.asked)) == (37, 25)
        assert all(60 <= len(text.split()) <= 140 for text in known.passages.values())
        for topic in known.asked:
            assert topic.passage in topic.retrieved and len(set(topic.retrieved)) == 3
            assert 3 <= len(topic.questions) <= 5
        assert {name for topic in known.asked for name in topic.retrieved} == set(known.passages)


class TestAgent:
    def test_calls_of_a_session_come_in_order_and_each_repeats_all_before_it(self) -> None:
        going: dict[str, list[tuple[str, str]]] = {}
        for one in made("agent", count=102).asked:
            said = messages(one.fields)
            before = going.get(one.session)
            if before is None:
                assert len(said) == 2
            else:
                assert said[: len(before)] == before
                assert [role for role, _ in said[len(before) :]] == ["assistant", "user"]
            going[one.session] = said
        assert len(going) == 12

    def test_lengths_are_a_quarter_of_the_trace(self) -> None:
        asked = made("agent", count=102).asked
        for session in agent.sessions():
            calls = [one for one in asked if one.session == session.session]
            for one, (input_tokens, output_tokens) in zip(calls, session.calls, strict=True):
                assert sum(len(text.split()) for _, text in messages(one.fields)) == input_tokens // agent.SCALE
                assert one.fields["max_tokens"] == min(48, output_tokens)

    def test_sessions_begin_alike_as_far_as_their_blocks_do(self) -> None:
        last = {one.session: one for one in made("agent", count=102).asked}
        for left, right in itertools.combinations(agent.sessions(), 2):
            alike = shared(left.blocks, right.blocks)
            same = shared(*(words_of(last[one.session].fields) for one in (left, right)))
            # Random words may agree beyond the blocks by chance, hardly ever by a whole block.
            assert alike * 4 <= same < alike * 4 + 4

    def test_some_sessions_go_on_side_by_side(self) -> None:
        order = [one.session for one in made("agent").asked]
        for at in range(len(order)):
            assert len(set(order[: at + 1]) & set(order[at:])) <= agent.OPEN
        assert any(a != b for a, b in itertools.pairwise(order))
        assert len({session for session, _ in itertools.groupby(order)}) < len(list(itertools.groupby(order)))

    def test_what_a_call_says_does_not_depend_on_the_seed(self) -> None:
        assert set(bodies(made("agent", 1, 102))) == set(bodies(made("agent", 2, 102)))


def words_of(fields: dict[str, Any]) -> list[str]:
    return " ".join(text for _, text in messages(fields)).split()


class TestChat:
    def test_nobody_asks_twice_and_prompts_share_little(self) -> None:
        work = made("chat", count=80)
        assert len(set(work.groups)) == len({one.label for one in work.asked}) == 80
        texts = [messages(one.fields)[1][1] for one in work.asked]
        assert max(shared(a, b) for a, b in itertools.combinations(texts, 2)) < 100
        assert len(chat.SYSTEM_PROMPT.splitlines()) == 1


def test_sources_name_every_data_file() -> None:
    folder = files("trimtab.measure") / "data"
    sources = (folder / "SOURCES.md").read_text(encoding="utf-8")
    names = {entry.name for entry in folder.iterdir()} - {"SOURCES.md"}
    assert {"passages.json", "agent_sessions.jsonl", "open_prompts.jsonl"} <= names
    assert [name for name in names if f"`{name}`" not in sources] == []
