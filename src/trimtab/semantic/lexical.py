"""What two texts' words say of their sameness: overlap, and mismatches that make a near text a wrong one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
_NUMBER: Final = re.compile(r"\d+(?:[.,:/-]\d+)*")
_LONGEST_CHARS: Final = 8192
_SUFFIXES: Final = ("ing", "ies", "ied", "es", "ed", "ly", "s")
_BREAKS: Final = frozenset('.?!:\n"“')  # after which a capital says nothing


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COUNTING: Final = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
NUMBER_WORDS: Final = {word: str(value) for value, word in enumerate(_COUNTING.split())} | {
    **{"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90"},
    **{"hundred": "100", "thousand": "1000", "million": "1000000", "half": "0.5", "twice": "2x", "double": "2x"},
}
"""Words for numbers, and their digits; a factor such as "twice" ends in x."""
_UNSURE_NUMBERS: Final = frozenset({"one", "zero"})  # "which one" is no number

_NEGATIONS: Final = _words("""
    no not never none nobody nothing neither nor without cannot cant dont doesnt didnt wont wouldnt shouldnt couldnt
    isnt arent wasnt werent hasnt havent hadnt unable fail failed fails refuse refused impossible
""")
_STOP: Final = _words("""
    a an the i you he she it we they me my your his her its our their mine yours this that these those is am are was
    were be been being do does did doing have has had having will would can could shall should may might must to of in
    on at by for with about as from into and or but if so than then there here what which who whom whose when where why
    how please just like get got want need know tell im ive id ill s t m re ve d ll
""")
# Pairs that turn a question into its opposite. From general English, not from any data set.
_ANTONYMS: Final = """
    on off,open close,open closed,start stop,begin end,start finish,enable disable,add remove,add delete,create delete,
    increase decrease,raise lower,up down,high low,higher lower,maximum minimum,max min,more less,most least,buy sell,
    deposit withdraw,deposit withdrawal,send receive,send get,incoming outgoing,in out,before after,earlier later,
    first last,old new,oldest newest,best worst,good bad,better worse,cheap expensive,cheapest expensive,safe dangerous,
    true false,yes no,always never,all none,with without,import export,upload download,encode decode,encrypt decrypt,
    lock unlock,block unblock,install uninstall,subscribe unsubscribe,activate deactivate,connect disconnect,
    accept reject,accept decline,approve deny,approve decline,allow forbid,allow block,include exclude,push pull,
    push pop,left right,north south,east west,top bottom,hot cold,warm cool,big small,large small,long short,
    longest shortest,fast slow,faster slower,win lose,borrow lend,arrive depart,arrival departure,arrive leave,
    enter exit,save spend,earn spend,pass fail,success failure,asc desc,ascending descending,horizontal vertical,
    male female,man woman,men women,husband wife,father mother,boy girl,credit debit,physical virtual,
    positive negative,public private,internal external,advantage disadvantage,pro con,legal illegal,
    possible impossible,day night,am pm,gain lose,love hate,input output,read write,even odd,same different,
    temporary permanent,single multiple,synchronous asynchronous,mute unmute,checking savings,celsius fahrenheit,
    domestic international,strength weakness,encourage discourage,attach detach
"""


def _stem(word: str) -> str:
    """A light stem: "cards" and "card" meet, "was" and "is" do not. Enough for overlap, and no table to ship."""
    for suffix in _SUFFIXES if word.endswith(_SUFFIXES) else ():
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)] + ("y" if suffix in ("ies", "ied") else "")
    return word


def _opposites() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for pair in _ANTONYMS.split(","):
        one, other = pair.split()
        for a, b in ((one, other), (other, one)):
            for form in (a, _stem(a)):
                found.setdefault(form, set()).update((b, _stem(b)))
    return {word: frozenset(others) for word, others in found.items()}


_OPPOSITES: Final = _opposites()


@dataclass(frozen=True, slots=True)
class Profile:
    """A text's words, once: stems in order, the stems that carry meaning, numbers, names, and whether it negates."""

    stems: tuple[str, ...]
    content: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]
    negated: bool
    chars: int


def profile(text: str) -> Profile:
    """Read a text's words; a text beyond 8,192 characters counts up to there. Pure, some 10 us a short text."""
    text = text[:_LONGEST_CHARS]
    found = list(_WORD.finditer(text))
    words = [match.group().lower().replace("’", "'") for match in found]
    bare = [word.replace("'", "") for word in words]
    numbers = {number.replace(",", "").strip(".-/:") for number in _NUMBER.findall(text)}
    numbers |= {NUMBER_WORDS[word] for word in bare if word in NUMBER_WORDS and word not in _UNSURE_NUMBERS}
    stems = tuple(_stem(word.split("'")[0]) for word in words)
    content = frozenset(stem for stem, word in zip(stems, bare, strict=True) if word not in _STOP)
    return Profile(
        stems,
        content or frozenset(stems),
        frozenset(numbers),
        _names(text, found),
        sum(word in _NEGATIONS for word in bare) % 2 == 1,
        len(text),
    )


def _names(text: str, found: list[re.Match[str]]) -> frozenset[str]:
    """Capitalised words inside sentences; none where most words are capitalised, for it says nothing there."""
    names = set()
    inner = capitals = 0
    for before, match in pairwise(found):
        if not _BREAKS.isdisjoint(text[before.end() : match.start()]):
            continue
        inner += 1
        word = match.group()
        if word[0].isupper():
            capitals += 1
            bare = word.lower().split("'")[0]
            if bare not in _STOP:
                names.add(_stem(bare))
    return frozenset(names) if capitals < 0.6 * inner or inner == 1 else frozenset()


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared of all, 0 to 1; two empty sets are the same."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def trigram_dice(a: Profile, b: Profile) -> float:
    """Dice's coefficient of the stems' character trigrams, 0 to 1: near words count in part."""
    one, other = _trigrams(a.stems), _trigrams(b.stems)
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def _trigrams(stems: tuple[str, ...]) -> set[str]:
    return {word[n : n + 3] for stem in stems for word in (f"^{stem}$",) for n in range(len(word) - 2)}


def number_mismatch(a: Profile, b: Profile) -> float:
    """1 if both have numbers and they differ, 0.5 if only one has any, else 0."""
    if a.numbers == b.numbers:
        return 0.0
    return 1.0 if a.numbers and b.numbers else 0.5


def name_mismatch(a: Profile, b: Profile) -> float:
    """The share of names of either text that the other one does not contain as any word."""
    names = a.names | b.names
    if not names:
        return 0.0
    lacking = sum(name not in b.stems for name in a.names) + sum(name not in a.stems for name in b.names)
    return lacking / (len(a.names) + len(b.names))


def antonyms(a: Profile, b: Profile) -> float:
    """1 if a word of one text that the other lacks has its opposite there, and not here."""
    only_a, only_b = set(a.stems) - set(b.stems), set(b.stems) - set(a.stems)
    return float(any(not _OPPOSITES.get(word, frozenset()).isdisjoint(only_b) for word in only_a))


def disorder(a: Profile, b: Profile) -> float:
    """The share of pairs of shared words that stand in the other order ("from A to B" against "from B to A")."""
    theirs = {stem: n for n, stem in reversed(list(enumerate(b.stems)))}
    places = [theirs[stem] for stem in dict.fromkeys(a.stems) if stem in theirs][:24]  # bounds the pairs to 276
    if len(places) < 2:
        return 0.0
    pairs = len(places) * (len(places) - 1) / 2
    return sum(x > y for n, x in enumerate(places) for y in places[n + 1 :]) / pairs
