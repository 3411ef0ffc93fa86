"""Turns one table into its Struct, field by field, so that one mistake does not hide the next.

msgspec stops at the first error of a Struct; every field is therefore converted on its own first, and its error is
reworded for somebody who edits the file.
"""

from __future__ import annotations

import math
import re
import types
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from trimtab.config.problems import Path, Problems, choices, dotted, names_secret, nearest, shown

T = TypeVar("T", bound=Struct)

_EXPECTED = re.compile(r"Expected `(?P<types>[^`]+)`(?P<bound>[^,]*)(?:, got .*)?")
_AT = re.compile(r" - at `\$(?P<place>[^`]*)`$")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text in quotes",
    "bool": "true or false",
    "array": 'a list such as ["a", "b"]',
    "object": "a table",
}


def decode(cls: type[T], table: object, path: Path, problems: Problems, *, also: tuple[str, ...] = ()) -> T | None:
    """The Struct of a table; None if a required field is missing or wrong. Wrong optional fields take their default.

    `also` names keys of the table that are not this Struct's and are read elsewhere. Adds to `problems`.
    """
    if not isinstance(table, dict):
        problems.add(path, f"must be a table, not {shown(table)}; write [{dotted(path)}] above its keys")
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    unknown = [key for key in table if key not in fields and key not in also]
    split = [key for key in unknown if _is_split_name(path, key, table[key], [*fields, *also])]
    for key in unknown:
        _report_unknown((*path, key), table[key], [*fields, *also], problems, split=key in split)
    if split:  # the table is half of a name, so what it lacks says nothing
        return None
    good: dict[str, Any] = {}
    usable = True
    for name, field in fields.items():
        if name in table:
            value, fine = _field(field, table[name], (*path, name), problems)
            if fine:
                good[name] = value
                continue
        elif field.required:
            problems.add((*path, name), f"is missing; add {name} = {_example(field)}")
        usable = usable and not field.required
    if not usable:
        return None
    try:
        return msgspec.convert(good, cls)
    except msgspec.ValidationError as error:  # the Struct's own __post_init__ has the last word
        problems.add(path, f"{error}; see the kind's settings")
        return None


def _example(field: FieldInfo) -> str:
    bare = _without_none(field.type)
    return {int: "0", float: "0.0", bool: "false"}.get(bare, '"..."')


def _is_split_name(path: Path, key: str, value: object, known: list[str]) -> bool:
    """Whether a table's name had a dot and no quotes: TOML reads [models.gpt-4.1] as a table "1" in "gpt-4"."""
    return len(path) == 2 and isinstance(value, dict) and not nearest(key, known)


def _report_unknown(path: Path, value: object, known: list[str], problems: Problems, *, split: bool) -> None:
    """Report a key that does not exist: a secret in the file, a name that lacks its quotes, or a slip of the pen."""
    if path in problems:
        return
    key = path[-1]
    if split:
        whole = f'{path[0]}."{".".join(path[1:])}"'
        problems.add(path, f"unknown table; if the name has a dot in it, put it in quotes: [{whole}]")
    elif names_secret(key) and isinstance(value, str):
        problems.add(path, secret_message(path))
    else:
        problems.add(path, f"unknown key; {choices(key, known)}")


def secret_message(path: Path) -> str:
    """What is wrong with a secret at this place, and where it belongs."""
    if path[0] == "keys":
        return "a secret in the file; store its hash: `trimtab keys new` makes a key and prints the table to paste"
    way_out = 'name the environment variable that holds it, such as api_key_env = "OPENAI_API_KEY"'
    return f"a secret in the file; take it out, revoke it, and {way_out}"


def _field(field: FieldInfo, value: Any, path: Path, problems: Problems) -> tuple[Any, bool]:
    if path in problems:  # reported by an earlier pass, as a secret
        return None, False
    nested = _without_none(field.type)
    if isinstance(value, dict) and isinstance(nested, type) and issubclass(nested, Struct):
        before = len(problems)
        struct = decode(nested, value, path, problems)
        return struct, len(problems) == before
    if isinstance(value, dict) and (item := _struct_by_name(nested)) is not None:
        by_name = {name: decode(item, table, (*path, name), problems) for name, table in value.items()}
        return {name: one for name, one in by_name.items() if one is not None}, True
    if isinstance(value, dict) and get_origin(nested) is dict:
        item_field = FieldInfo(field.name, field.encode_name, get_args(nested)[1])
        read = {name: _field(item_field, part, (*path, name), problems) for name, part in value.items()}
        return {name: one for name, (one, fine) in read.items() if fine}, True
    if isinstance(value, float) and not math.isfinite(value):
        problems.add(path, f"must be a finite number, not {value}; leave the key out for its default")
        return None, False
    try:
        return msgspec.convert(value, field.type), True
    except msgspec.ValidationError as error:
        problems.add(path, _reworded(str(error), field, value))
        return _good_items(field, value)


def _good_items(field: FieldInfo, value: Any) -> tuple[Any, bool]:
    """What is usable of a wrong list, so that the names in it are still checked."""
    if isinstance(value, list):
        with suppress(msgspec.ValidationError):
            return msgspec.convert([item for item in value if isinstance(item, str)], field.type), True
    return None, False


def _reworded(message: str, field: FieldInfo, value: Any) -> str:
    """What the value must be, what it is, and the way out if it is only a matter of quotes."""
    place = _AT.search(message)
    item = _item(value, place["place"]) if place else value
    described = "" if place else _description(field.type)
    if described:
        wanted = described
    elif expected := _EXPECTED.match(_AT.sub("", message)):
        names = [_WORDS.get(name, name) for name in expected["types"].split(" | ") if name != "null"]
        wanted = " or ".join(names) + expected["bound"]
    elif values := _literals(field.type):
        wanted = "one of " + ", ".join(f'"{value}"' for value in values)
    else:
        return f"{_AT.sub('', message)}; it is {shown(item)}"
    where = "every item must be" if place else "must be"
    way_out = _quotes(wanted, item) or ("" if field.required else "; correct it or leave the key out for its default")
    return f"{where} {wanted}, not {shown(item)}{way_out}"


def _item(value: Any, place: str) -> Any:
    """The part of a value that a msgspec path such as "[0]" points at; the value itself if that is not clear."""
    for number in re.findall(r"\[(\d+)\]", place):
        if not isinstance(value, list) or int(number) >= len(value):
            return value
        value = value[int(number)]
    return value


def _quotes(wanted: str, value: Any) -> str:
    if isinstance(value, str) and "quotes" not in wanted and re.fullmatch(r"-?[\d._]+|true|false", value):
        return f"; write {value} without quotes"
    if isinstance(value, int | float) and not isinstance(value, bool) and "quotes" in wanted:
        return f'; write "{value}"'
    return ""


def _parts(kind: Any) -> list[Any]:
    """The members of a union; a type alone is its only member."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def _without_none(kind: Any) -> Any:
    """The plain type behind `X | None` and Annotated; a union of several stays as it is."""
    members = [part for part in _parts(kind) if part is not type(None)]
    if len(members) != 1:
        return kind
    return get_args(members[0])[0] if get_origin(members[0]) is Annotated else members[0]


def _struct_by_name(kind: Any) -> type[Struct] | None:
    """The Struct of `dict[str, Struct]`, None for all else."""
    if get_origin(kind) is not dict:
        return None
    item = get_args(kind)[1]
    return item if isinstance(item, type) and issubclass(item, Struct) else None


def _description(kind: Any) -> str:
    for part in _parts(kind):
        if get_origin(part) is Annotated:
            for meta in part.__metadata__:
                if isinstance(meta, msgspec.Meta) and meta.description:
                    return meta.description
    return ""


def _literals(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()
