"""Which earlier answer may serve: memories by context, a promise by tenant and route, all of it on disk.

A context is everything beside the question that can change the answer (`levers.semantic_cache`), hashed together with
tenant, versions and permissions: each has a memory of its own, so nothing of one can ever be found in another. What is
learned about being right is shared by the contexts of one tenant's route, as long as they use the same embedder.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.ports import Clock
from trimtab.protocols import answer_text
from trimtab.semantic.declining import declines
from trimtab.semantic.embed import Embedder
from trimtab.semantic.evidence import FEATURES, Query
from trimtab.semantic.fixed import Fixed
from trimtab.semantic.groups import Row
from trimtab.semantic.judge import cascade
from trimtab.semantic.learner import Learner
from trimtab.semantic.learner import Look as Judged
from trimtab.semantic.lexical import profile
from trimtab.semantic.promise import CLOSED, Promise
from trimtab.semantic.promise import Terms as PromiseTerms
from trimtab.similar.messages import Doubt, Found, Learn, Look, Space, Told
from trimtab.similar.rows import Kept, Rows, is_damage
from trimtab.stores._purges import Purges
from trimtab.types import Asked, Embedded, ReuseTerms, Similar

_log = logging.getLogger("trimtab.similar")

_MOST_PENDING: Final = 10_000  # questions whose answers are awaited
_MOST_DOUBTED: Final = 1000  # answers whose judge was asked
_MOST_CONTEXTS: Final = 2000  # in memory
_LEARNED_S: Final = 20.0  # between two writes of it: what a promise knows is some 0.4 MB
_MOST_ANSWER_BYTES: Final = 1 << 20

Rule = Promise | Fixed
_Key = tuple[str, str, str, bytes]  # tenant, route, embedder, hash of the context
Vectors = NDArray[np.float32]


class _Side:
    """One tenant's route under one embedder."""

    def __init__(self, key: tuple[str, str, str], terms: ReuseTerms) -> None:
        self.key = key
        self.tenant, self.route, self.embedder = key
        self.terms = terms
        self.rule = _rule(terms)
        self.dirty = False
        self.entries = 0

    def agree(self, terms: ReuseTerms) -> None:
        """Go on under these terms; what was learned stays, unless the kind of rule changed."""
        if terms == self.terms:
            return
        kept, former = self.rule.save(), self.terms
        self.terms, self.rule = terms, _rule(terms)
        if (terms.mode == "static") == (former.mode == "static"):
            self.restore(kept)

    def restore(self, state: bytes) -> None:
        """Go on where a saved rule stood; one that cannot be read begins anew, which is closed."""
        try:
            if isinstance(self.rule, Fixed):
                self.rule.restore(state)
            else:
                self.rule = Promise.load(self.rule.terms, state, features=len(FEATURES))
        except ValueError as error:
            _log.warning("what %s learned on %s cannot be read, it begins anew: %s", self.tenant, self.route, error)


class _Context:
    """Questions that may share answers."""

    def __init__(self, id_: int, side: _Side, learner: Learner) -> None:
        self.id = id_
        self.open = True
        self.learned = False  # since its groups were written
        self.side = side
        self.learner = learner
        self.expiring: deque[tuple[float, int]] = deque()  # in the order of arrival, which is nearly that of their ends
        self.written_groups: dict[int, int] = {}


class _Pending(NamedTuple):
    context: _Context
    judged: Judged


class _Doubted(NamedTuple):
    pending: _Pending
    said: Learn
    same: dict[int, bool]


class Service:
    """All spaces. Not thread-safe: one thread owns it. Raises sqlite3.Error from the disk; then the call had no effect
    on disk, and the next ones go on."""

    def __init__(self, folder: Path, accurate: Embedder, fast: Embedder, clock: Clock) -> None:
        self._rows = Rows(folder)
        self._purges = Purges(folder, clock.wall())
        self._state = self._purges.load()
        self._accurate, self._fast = accurate, fast
        self._clock = clock
        self._sides: dict[tuple[str, str, str], _Side] = {}
        self._contexts: OrderedDict[_Key, _Context] = OrderedDict()
        self._known: dict[_Key, tuple[int, int]] = {}
        self._states: dict[tuple[str, str, str], bytes] = {}
        self._judge = cascade(accurate)
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._doubted: OrderedDict[int, _Doubted] = OrderedDict()  # of which a model was asked
        self._token = int.from_bytes(os.urandom(6), "little") << 16  # no former process's token means anything here
        self.failures = 0  # of calls, as whoever makes them counts
        self._learned_at = clock.mono()  # when what was learned was last written
        try:
            self._remember()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._rows.begin_anew(error)
            self._remember()

    def _remember(self) -> None:
        self._known = {(t, r, e, c): (id_, next_entry) for id_, t, r, e, c, next_entry in self._rows.contexts()}
        self._states = {(tenant, route, embedder): state for tenant, route, embedder, state in self._rows.promises()}
        self._rows.remove_before(self._state.purged_at)
        self._rows.commit()

    @property
    def errors(self) -> int:
        """Failures so far: of calls, and of a file that was damaged."""
        return self.failures + self._rows.damaged

    def failed(self, error: Exception) -> None:
        """A call raised that. A damaged file is set aside: what was known is forgotten, what was learned stays."""
        self.failures += 1
        if is_damage(error):
            for context in self._contexts.values():
                context.open = False
                context.side.entries -= len(context.written_groups)
            self._contexts.clear()
            self._known.clear()
            self._pending.clear()
            self._doubted.clear()
            self._rows.begin_anew(error)

    # Asking

    def look(self, look: Look) -> Found:
        """Decide on a question."""
        self._notice_purges()
        fast = accurate = self._fast.embed([look.asked.text])[0]
        if look.terms.embedder != "fast":
            accurate = self._accurate.embed([look.asked.text])[0]
        context = self._context(look.asked, look.terms)
        self._expire(context)
        side = context.side
        side.dirty = True
        judged = context.learner.look(Query(profile(look.asked.text), accurate, fast))
        p_wrong = judged.p_wrong if judged.candidate is not None and not isinstance(side.rule, Fixed) else None
        limit = side.rule.limit
        stored = None
        if judged.hit and judged.entry is not None:
            stored = self._rows.stored(context.id, judged.entry)
        self._token += 1
        self._pending[self._token] = _Pending(context, judged)
        if len(self._pending) > _MOST_PENDING:
            self._pending.popitem(last=False)
        hit = stored is not None
        why = _why(side, judged, hit=hit)
        return Found(look.n, Similar(self._token, judged.audit and hit, p_wrong, limit, why, stored), self.errors)

    def _context(self, asked: Asked, terms: ReuseTerms) -> _Context:
        whose = (asked.tenant, asked.route, terms.embedder)
        side = self._sides.get(whose)
        if side is None:
            side = self._sides[whose] = _Side(whose, terms)
            if state := self._states.pop(whose, b""):
                side.restore(state)
        side.agree(terms)
        key = (*whose, asked.context)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._open(key, side)
            if len(self._contexts) > _MOST_CONTEXTS:
                self._put_away()
        else:
            self._contexts.move_to_end(key)
        context.learner.promise = side.rule
        return context

    def _open(self, key: _Key, side: _Side) -> _Context:
        fast = self._fast.dim
        dim = fast if side.embedder == "fast" else self._accurate.dim
        learner = Learner(side.rule.terms, accurate_dim=dim, fast_dim=fast, capacity=side.terms.max_entries)
        if key not in self._known:
            self._known[key] = (self._rows.add_context(*key), 0)
        id_, next_entry = self._known[key]
        context = _Context(id_, side, learner)
        now, dead, rows = self._clock.wall(), [], []
        for kept in self._rows.answers(id_):
            if kept.stored.expires <= now or self._state.is_dead(kept.stored) or self._state.means(kept.stored):
                dead.append(kept.entry)
                continue
            rows.append(Row(kept.entry, kept.group, kept.profile, kept.accurate, kept.fast))
            context.expiring.append((kept.stored.expires, kept.entry))
            context.written_groups[kept.entry] = kept.group
        self._rows.remove(id_, dead)
        learner.restore(rows, next_entry)
        side.entries += len(rows)
        return context

    def _put_away(self) -> None:
        """The context that was asked longest ago goes from memory, not from the disk."""
        key, context = self._contexts.popitem(last=False)
        self._write_groups(context)
        context.open = False
        context.side.entries -= len(context.written_groups)
        self._known[key] = (context.id, context.learner.memory.next_id)

    # Learning

    def learn(self, said: Learn) -> Doubt | Told | None:
        """Compare a fresh answer with the neighbours', learn from it, and keep it; the verdict, if it is wanted.

        Where a model may be asked, and whether the candidate's answer is equivalent cannot be read from the two, that
        waits until `judged` is called.
        """
        pending = self._pending.pop(said.token, None)
        if pending is None or not pending.context.open or len(said.stored.body) > _MOST_ANSWER_BYTES:
            return _told(said, None)
        fresh = answer_text(said.stored.body, said.stored.dialect)
        if fresh is None or declines(fresh):
            return _told(said, None)
        texts = self._texts(pending)
        same = self._verdicts(fresh, texts)
        candidate = pending.judged.entry
        if said.may_ask and candidate in texts and candidate not in same:
            self._doubted[said.token] = _Doubted(pending, said, same)
            if len(self._doubted) > _MOST_DOUBTED:
                self._keep(*self._doubted.popitem(last=False)[1])
            return Doubt(said.token, fresh, texts[candidate])
        self._keep(pending, said, same)
        return _told(said, None if candidate is None else same.get(candidate))

    def judged(self, token: int, same: bool | None) -> Told | None:
        """What the model said of a doubt; None if it could not tell. The verdict, if it is wanted."""
        doubted = self._doubted.pop(token, None)
        if doubted is None:
            return None
        candidate = doubted.pending.judged.entry
        verdicts = doubted.same if same is None or candidate is None else doubted.same | {candidate: same}
        self._keep(doubted.pending, doubted.said, verdicts)
        return _told(doubted.said, same)

    def _keep(self, pending: _Pending, said: Learn, same: dict[int, bool]) -> None:
        context, judged = pending
        if not context.open or self._state.is_dead(said.stored):
            return
        entry = context.learner.learn(judged, same)
        context.learned = True
        group = context.learner.memory.group(entry)
        query = judged.query
        self._rows.add(context.id, Kept(entry, group, query.profile, query.accurate, query.fast, said.stored))
        context.expiring.append((said.stored.expires, entry))
        context.written_groups[entry] = group
        context.side.entries += 1
        context.side.dirty = True
        oldest = entry - context.learner.memory.capacity
        if oldest >= 0:
            self._forget(context, [oldest])

    def _texts(self, pending: _Pending) -> dict[int, str]:
        """The answers to compare with, as far as they are still there."""
        context, judged = pending
        texts: dict[int, str] = {}
        for entry in judged.compare:
            stored = self._rows.stored(context.id, entry) if entry in context.learner.memory else None
            text = None if stored is None else answer_text(stored.body, stored.dialect)
            if text is not None:
                texts[entry] = text
        return texts

    def _verdicts(self, fresh: str, texts: dict[int, str]) -> dict[int, bool]:
        verdicts = self.compare(fresh, list(texts.values()))
        return {entry: same for entry, same in zip(texts, verdicts, strict=True) if same is not None}

    def compare(self, fresh: str, others: Sequence[str]) -> list[bool | None]:
        """Whether each is as good as the fresh answer, with the judges alone: may be called from another thread."""
        return [verdict.same for verdict in self._judge.compare(fresh, others)]

    def vectors(self, texts: Sequence[str], *, accurate: bool) -> Embedded:
        """Texts as vectors, with the models alone: may be called from another thread."""
        model = self._accurate if accurate else self._fast
        return Embedded(model.embed(texts).astype("<f4").tobytes(), model.tokens(texts))

    # Forgetting

    def _notice_purges(self) -> None:
        if self._purges.words.snapshot() == self._state.seen:
            return
        state = self._purges.load()
        self._rows.remove_before(state.purged_at)
        for context in self._contexts.values():
            dead = [
                entry
                for entry in list(context.written_groups)
                if (stored := self._rows.stored(context.id, entry)) is None
                or state.is_dead(stored)
                or state.means(stored)
            ]
            self._forget(context, dead)
        self._rows.commit()
        self._state = state  # not before it was done: until then every look tries again, and finds nothing

    def _expire(self, context: _Context) -> None:
        now, dead = self._clock.wall(), []
        while context.expiring and context.expiring[0][0] <= now:
            dead.append(context.expiring.popleft()[1])
        if dead:
            self._forget(context, dead)

    def _forget(self, context: _Context, entries: Sequence[int]) -> None:
        memory = context.learner.memory
        for entry in entries:
            if context.written_groups.pop(entry, None) is not None:
                context.side.entries -= 1
            if entry in memory:
                memory.remove(entry)
        self._rows.remove(context.id, entries)

    # Keeping

    def save(self, *, final: bool = False) -> None:
        """Have answers on disk, and what was learned every twenty seconds or so; all of it with `final`."""
        now = self._clock.mono()
        if final or now - self._learned_at >= _LEARNED_S:
            self._learned_at = now
            for side in self._sides.values():
                if side.dirty:
                    self._rows.save_promise(side.key, side.rule.save())
                    side.dirty = False
            for context in self._contexts.values():
                self._write_groups(context)
        self._rows.commit()

    def _write_groups(self, context: _Context) -> None:
        if not context.learned:
            return
        context.learned = False
        memory = context.learner.memory
        moved = [
            (entry, memory.group(entry))
            for entry, group in context.written_groups.items()
            if entry in memory and memory.group(entry) != group
        ]
        self._rows.regroup(context.id, moved)
        context.written_groups.update(moved)

    def census(self) -> list[Space]:
        """How each tenant's route is doing."""
        return [
            Space(
                side.tenant,
                side.route,
                side.entries,
                side.rule.requests,
                side.rule.hits,
                side.rule.audits,
                side.rule.audited_wrong,
                side.rule.wrong_estimate,
                side.rule.limit,
                side.rule.alarms,
            )
            for side in self._sides.values()
        ]

    def close(self) -> None:
        """Save and release the file."""
        for doubted in self._doubted.values():
            self._keep(*doubted)
        self.save(final=True)
        self._rows.close()
        self._purges.close()


def _told(said: Learn, same: bool | None) -> Told | None:
    return Told(said.token, same) if said.tell else None


def _rule(terms: ReuseTerms) -> Rule:
    asked = PromiseTerms(terms.max_wrong, 1.0 if terms.mode == "shadow" else terms.audit, terms.strict)
    return Fixed(asked, terms.threshold) if terms.mode == "static" else Promise(asked)


def _why(side: _Side, judged: Judged, *, hit: bool) -> str:
    if judged.candidate is None:
        return "nothing known yet"
    cosine = f"cosine {judged.candidate.values[0]:.2f}"
    rule = side.rule
    if isinstance(rule, Fixed):
        return f"{cosine} {'at least' if hit else 'under'} {rule.threshold:g}"
    if rule.limit == CLOSED:
        return f"closed {'after drift' if rule.alarms else 'until the bound holds'}, {cosine}"
    return f"p_wrong {judged.p_wrong:.3f} {'within' if hit else 'above'} {rule.limit:.3f}, {cosine}"
