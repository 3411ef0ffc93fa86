"""What users think of answers: read strictly, joined by request and tenant, the latest counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ingest import PRICES, paid
from test_levers_watched import judged, trimtab

from trimtab.errors import BadRequest
from trimtab.stores import ledger_db, ledger_reader
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.types import Feedback, Scope
from trimtab.wire.intake import feedback_in

ID = "tt-0123456789abcdef0123"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('"score": 0.25', (ID, 0.25, "")),
        ('"score": 1', (ID, 1.0, "")),
        ('"rating": "up"', (ID, 1.0, "")),
        ('"rating": "down", "comment": "no"', (ID, 0.0, "no")),
        (f'"score": 0, "comment": "{"x" * 1000}"', (ID, 0.0, "x" * 1000)),
    ],
)
def test_what_may_be_sent(text, read):
    assert feedback_in(f'{{"request_id": "{ID}", {text}}}'.encode()) == read


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b'{"score": 1}', "request_id"),
        (b'{"request_id": 5, "score": 1}', "request_id"),
        (b'{"request_id": "tt-1", "score": 1}', "request_id"),
        (b'{"request_id": "%b"}', "score"),
        (b'{"request_id": "%b", "score": 1.01}', "score"),
        (b'{"request_id": "%b", "score": -1}', "score"),
        (b'{"request_id": "%b", "score": "1"}', "score"),
        (b'{"request_id": "%b", "score": true}', "score"),
        (b'{"request_id": "%b", "score": 1e999}', "score"),
        (b'{"request_id": "%b", "rating": "meh"}', "rating"),
        (b'{"request_id": "%b", "rating": "up", "score": 1}', "rating"),
        (b'{"request_id": "%b", "score": 1, "comment": 3}', "comment"),
        (b'{"request_id": "%b", "score": 1, "comment": "' + b"x" * 1001 + b'"}', "comment"),
        (b'{"request_id": "%b", "score": 1, "stars": 3}', "stars"),
    ],
)
def test_what_is_wrong_is_named(body, field):
    with pytest.raises(BadRequest) as raised:
        feedback_in(body.replace(b"%b", ID.encode()))
    assert raised.value.param == field


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    with pytest.raises(BadRequest):
        feedback_in(body)


def test_the_latest_of_the_same_tenant_counts(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w0")
    journal.note(Feedback(ID, "t", 5.0, 0.0, "bad"))  # before its row is there
    journal.note(Feedback(ID, "t", 7.0, 1.0, "good after all"))
    journal.note(Feedback(ID, "t", 6.0, 0.5, "another worker's, said earlier"))
    journal.note(Feedback(ID, "other", 8.0, 0.0, "forged"))
    journal.row(paid(ID, scope=Scope("t")))
    journal.close()
    ingester = Ingester(tmp_path, PRICES)
    ingester.run_once()
    ingester.close()
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        assert reader.show(ID)["feedback"] == {"at": 7.0, "score": 1.0, "comment": "good after all"}
    code, shown = trimtab(tmp_path, "ledger", "show", ID)
    assert code == 0 and "1: good after all" in shown


def test_a_request_shows_the_verdicts_on_it(tmp_path):
    journal = FileJournal(tmp_path / "journal", "w0")
    word = judged(1, 1.0)
    journal.row(paid(word.id, scope=Scope("acme")))
    journal.note(word)
    journal.close()
    ingester = Ingester(tmp_path, PRICES)
    ingester.run_once()
    ingester.close()
    code, shown = trimtab(tmp_path, "ledger", "show", word.id)
    assert code == 0 and "worse than the reference's answer (loss 1, by texts)" in shown
