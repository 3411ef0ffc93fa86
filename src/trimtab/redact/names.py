"""Whether a text seems to speak of a private person by name: by what stands around capitalised words, and by lists.

A name has no form of its own, so this is a judgement and not a proof. Two things decide: the context (a salutation, a
title, a label, a signature, words about an account or an appointment) and whether the words are names at all. For the
latter there are lists (`name_lists/README.md` says whence). Only names in Latin letters are found.

Time is linear in the text: one pass finds the runs of capitalised words, and each run looks at a bounded piece of what
stands around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from trimtab.redact.body import DATA, STRUCTURAL
from trimtab.redact.name_words import full_name, generic, is_surname, known

_AROUND: Final = 96  # characters on each side of a name that say what it is
_SHORT_WAY: Final = 48  # characters before it that a greeting or a closing may need

# --- runs of capitalised words ---------------------------------------------------------------------------------------

_CAPITAL: Final = "[A-ZÀ-ÖØ-ÞĀ-Ž]"
_SHORT: Final = r"(?:rs?|s|x|rof|ra|me|t)?\.(?=[ \xa0])"  # Mr. Mrs. Dr. Prof. and initials: a dot that ends no sentence
_LONG: Final = r"[^\W\d_]{0,40}+(?:['’-][^\W\d_]{1,40}+){0,3}+(?![\w@(])"
_PARTICLE: Final = r"(?:(?:de|la|las|los|del|da|das|do|dos|di|van|von|der|den|ter|bin|al|el|e|y|zu)[ \xa0])"
_RUN: Final = re.compile(
    # What stands before is looked at from behind the first letter, because `re` skips to letters of a class fast.
    rf"{_CAPITAL}(?<![\w@#$/\\.&-].)(?:{_SHORT}|{_LONG})"
    rf"(?:[ \xa0]{_PARTICLE}{{0,3}}+{_CAPITAL}(?:{_SHORT}|{_LONG})){{0,7}}+"
)

_TITLES: Final = frozenset(
    ("Mr", "Mrs", "Ms", "Mx", "Dr", "Prof", "Sr", "Sra", "Herr", "Frau", "Madame", "Mme", "Monsieur", "Señor", "Señora")
)

# --- what stands before a name ---------------------------------------------------------------------------------------

_GREETINGS: Final = (
    r"dear|hello|hi|hey|greetings|hola|bonjour|hallo|liebe|lieber|good (?:morning|afternoon|evening|day)|"
    r"guten (?:tag|morgen)"
)
_THANKS: Final = r"thanks|thank you|welcome|welcome back|sorry|congratulations|congrats|goodbye|bye"
_OPENING: Final = r"[\n\"'“‘*_>(.!?:;][ \t]{0,2}"
_GREETED: Final = re.compile(rf"{_OPENING}(?:({_GREETINGS})|{_THANKS}),?[ \xa0]\Z", re.IGNORECASE)
_AFTER_GREETING: Final = re.compile(r"[ \t]?(?:[,!.:;?\n\r—–\"'”’*_<)]|- |\\n|\Z)")

_NAMED: Final = re.compile(
    r"\b(?:your|his|her|their|whose|holder['’]s|customer['’]s|patient['’]s|user['’]s)(?: (?:full|first|last|legal))?"
    r" name (?:is|was) [\"'“*_]{0,3}\Z|\bin the name of [\"'“*_]{0,3}\Z",
    re.IGNORECASE,
)
_LINE_END: Final = re.compile(r"[ \t*_.,]{0,4}(?:[\n\r]|\Z)")
_VALUE_END: Final = re.compile(r"[ \t*_]{0,4}(?:[\n\r,;|.\"'”<)\]}(/]|\Z)")
_QUOTES: Final = " \t\xa0\"'“‘”’*_`(["
_LABEL_EDGE: Final = re.compile(r"[\n\r,;|{}()\[\].!?<>]")
_NO_LETTER: Final = re.compile(r"[^a-z]")

_NEAR: Final = 20  # characters before a name in which a hint is looked for
_BETWEEN: Final = _QUOTES + ","
_HINTS: Final[tuple[str, ...]] = (
    ":", "=", "|", "is", "was", "name of", "dear", "hello", "hi", "hey", "greetings", "hola", "bonjour", "hallo",
    "liebe", "lieber", "morning", "afternoon", "evening", "good day", "tag", "morgen", "thanks", "thank you", "welcome",
    "back", "sorry", "congratulations", "congrats", "bye",
)  # fmt: skip
"""What the text before a name may end with, if it says that there is one; most runs end here."""
_NAMING_OPENERS: Final = frozenset(
    ("Dear", "Hello", "Hi", "Hey", "Greetings", "Hola", "Bonjour", "Hallo", "Liebe", "Lieber")
)
_OPENERS: Final = _NAMING_OPENERS | {"Thanks", "Welcome", "Sorry", "Congratulations", "Congrats", "Goodbye", "Bye"}
_CLOSINGS: Final = (
    "regards", "sincerely", "wishes", "cheers", "best", "thanks", "thank you", "truly", "faithfully", "respectfully",
    "grüßen", "grüße", "cordialement", "saludos",
)  # fmt: skip

_ROLES: Final = (
    "accountholder", "accountowner", "applicant", "attendee", "attn", "beneficiary", "billto", "borrower", "buyer",
    "caller", "candidate", "cardholder", "cardmember", "caregiver", "claimant", "client", "contactperson", "consignee",
    "customer", "debtor", "dependent", "donor", "driver", "emergencycontact", "employee", "guarantor", "guest",
    "insured", "landlord", "leadtraveler", "maidenname", "nextofkin", "occupant", "parent", "passenger", "patient",
    "payee", "payer", "policyholder", "primarycontact", "purchaser", "recipient", "requester", "resident", "sender",
    "shipto", "signatory", "signedby", "spouse", "student", "subscriber", "tenant", "traveler", "traveller", "user",
)  # fmt: skip
_WHOLE_LABELS: Final = frozenset(
    ("firstname", "lastname", "fullname", "surname", "givenname", "familyname", "middlename", "maidenname", "legalname")
)
"""Labels of persons' names only, as they are without case, blanks and marks."""
_LOOSE_LABELS: Final = frozenset(
    (
        *_ROLES, "name", "names", "accountmanager", "agent", "approvedby", "assignedto", "assignee", "author", "by",
        "contact", "createdby", "doctor", "from", "manager", "member", "owner", "physician", "preparedby", "provider",
        "referredby", "reportedby", "requestedby", "seller", "signature", "supervisor", "therapist", "to", "vorname",
        "nachname", "nom", "prenom", "nombre",
    )
)  # fmt: skip
"""Labels of persons and of other things: what follows must be a known name."""

_CUES: Final = frozenset(
    (
        "you", "your", "yours", "our", "my", "account", "accounts", "appointment", "appointments", "booking",
        "bookings", "reservation", "reservations", "invoice", "invoices", "policy", "policies", "claim", "claims",
        "ticket", "tickets", "prescribed", "prescription", "prescriptions", "patient", "patients", "customer",
        "customers", "client", "clients", "tenant", "tenants", "employee", "employees", "colleague", "colleagues",
        "coworker", "coworkers", "applicant", "applicants", "cardholder", "cardholders", "diagnosis", "diagnosed",
        "payroll", "salary", "overdue", "balance", "subscription", "subscriptions", "refund", "refunds", "refunded",
        "shipped", "deliver", "delivered", "delivery", "scheduled", "assigned", "registered", "enrolled", "email",
        "e-mail", "phone", "voicemail", "extension", "dob", "contact", "contacted", "loan", "mortgage", "owes",
        "medication",
    )
)  # fmt: skip
_CUE_PHRASES: Final = (
    "date of birth", "speak to", "speak with", "spoke to", "spoke with", "reach out", "ask for", "follow up",
    "followed up", "lives at", "lives in", "lives on", "home address", "next of kin", "test results", "lab results",
    "this order", "his order", "her order", "their order", "the order", "order #", "order number",
)  # fmt: skip
"""What people's own affairs are told with, rather than what they are known for."""
_LOWER_WORD: Final = re.compile(r"[a-z-]++")
_SENTENCE_EDGE: Final = re.compile(r"[.!?][ \n\"”]|\n")


def name_in(text: str, *, bare: bool) -> bool:
    """Whether the text names a person where the words around say that it is a private one; `bare`: or anywhere."""
    hints = _HINTS
    if "\n" in text:
        lower = text.lower()
        if any(closing in lower for closing in _CLOSINGS):
            hints = (*_HINTS, "\n")
    for run in _RUN.finditer(text):
        start = run.start()
        near = text[start - _NEAR : start] if start > _NEAR else text[:start]
        hinted = near.rstrip(_BETWEEN).lower().endswith(hints)
        words = run[0].split()
        if len(words) == 1 and not hinted:
            continue
        words = [word for word in words if word[0].isupper()]  # not the "de la" between them
        if not words:
            continue
        if (hinted or words[0] in _OPENERS) and _in_context(text, run, words):
            return True
        if len(words) > 1 and (_titled(words) or (full_name(words) and (bare or _is_cued(text, run)))):
            return True
    return False


def name_in_body(decoded: Any, *, bare: bool) -> bool:
    """`name_in` for every text of a decoded JSON body. Data of tools are read as fields: "key: value"."""
    return any(name_in(text, bare=bare) for text in _texts(decoded))


def _texts(answer: Any) -> Iterator[str]:
    """Every text that is no value of the protocol's own."""
    left: list[tuple[Any, str, bool]] = [(answer, "", False)]  # a value, its key, whether it is data of a tool
    while left:
        value, key, data = left.pop()
        if isinstance(value, str):
            inner = _json(value)
            if inner is not None:
                left.append((inner, "", True))
            elif data:
                yield f"{key}: {value}"
            elif key not in STRUCTURAL or " " in value:
                yield value
        elif isinstance(value, list):
            left += [(item, key, data) for item in value]
        elif isinstance(value, dict):
            left += [(item, name, data or name in DATA) for name, item in value.items()]


def _json(text: str) -> Any:
    """What a text says that is an object or an array itself, else None."""
    if text[:64].lstrip()[:1] not in ("{", "["):
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None


# --- one run ---------------------------------------------------------------------------------------------------------


def _in_context(text: str, run: re.Match[str], words: list[str]) -> bool:
    """Whether a name is expected where this run stands."""
    start, end = run.span()
    head = text[start - _AROUND : start] if start > _AROUND else f"\n{text[:start]}"
    before = head.rstrip(_BETWEEN)
    if words[0] in _OPENERS and len(words) > 1:
        return _addressed(text, words[1:], end, by_name=words[0] in _NAMING_OPENERS)
    if before.endswith((":", "=", "|")):
        return _labelled(text, before, words, end)
    if before.endswith("\n"):
        closed = before.rstrip("\n\r \t,.!*_")[-16:].lower().endswith(_CLOSINGS)
        return closed and _LINE_END.match(text, end) is not None and _signs(words)
    if before.endswith(("is", "was", "of")) and _NAMED.search(head[-_SHORT_WAY:]):
        return not generic(words)
    greeting = _GREETED.search(head[-_SHORT_WAY:])
    return greeting is not None and _addressed(text, words, end, by_name=greeting[1] is not None)


def _titled(words: list[str]) -> bool:
    """Mr. Smith, Dr J. Patel; but no Dr. Apt 4."""
    if _TITLES.isdisjoint(word.rstrip(".") for word in words):
        return False
    for n, word in enumerate(words[:-1]):
        if word.rstrip(".") in _TITLES:
            rest = [name for name in words[n + 1 :] if len(name.rstrip(".")) > 1]
            if rest and not rest[0].isupper() and not generic(rest[:1]):
                return True
    return False


def _addressed(text: str, words: list[str], end: int, *, by_name: bool) -> bool:
    """Whether these are whom a greeting means; `by_name`: one that none but a name or a role follows, such as Dear."""
    if len(words) > 4 or not _AFTER_GREETING.match(text, end) or generic(words):
        return False
    return by_name or known(words)


def _labelled(text: str, before: str, words: list[str], end: int) -> bool:
    """Account holder: Jane Roe; {"first_name": "Jane"}."""
    label = before[:-1].rstrip(_QUOTES + "|")
    edge = 0
    for edge_match in _LABEL_EDGE.finditer(label):
        edge = edge_match.end()
    squashed = _NO_LETTER.sub("", label[edge:].lower())
    if squashed.startswith("nameof"):
        squashed = squashed.removeprefix("nameof").removeprefix("the") + "name"
    stem = squashed.removesuffix("name")
    role = stem.removesuffix("full").removesuffix("first").removesuffix("last").endswith(_ROLES)
    whole = _VALUE_END.match(text, end) is not None
    if squashed in _WHOLE_LABELS or (role and stem != squashed):
        return not generic(words) and (whole or known(words))
    if role and whole and is_surname(words[-1]):
        return True
    return (role or squashed in _LOOSE_LABELS) and known(words, alone=False)


def _signs(words: list[str]) -> bool:
    return len(words) <= 4 and not generic(words) and known(words)


def _is_cued(text: str, run: re.Match[str]) -> bool:
    """Whether the sentence, or as much of it as one looks at, is about somebody's own matters."""
    start, end = run.span()
    left, right = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
    cut = 0
    for edge in _SENTENCE_EDGE.finditer(left):
        cut = edge.end()
    after = _SENTENCE_EDGE.search(right)
    sentence = f"{left[cut:]} {run[0]} {right[: after.start()] if after else right}".lower()
    if not _CUES.isdisjoint(_LOWER_WORD.findall(sentence)):
        return True
    return any(phrase in sentence for phrase in _CUE_PHRASES)
