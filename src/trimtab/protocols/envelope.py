"""The top level of a request body, and typed access to decoded JSON with errors that name the field."""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.errors import BadRequest, MalformedJson, UpstreamInvalid
from trimtab.protocols.chat import unsupported
from trimtab.types import Dialect

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRINGS = msgspec.json.Decoder(dict[str, str])
_STRING = msgspec.json.Decoder(str)
_TRUE = msgspec.Raw(b"true")


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """Each top-level field's bytes. Raises MalformedJson unless the body is one JSON object in UTF-8."""
    try:
        fields = _FIELDS.decode(body)
        if not body.isascii():
            body.decode()  # Raw values are checked for syntax only
    except msgspec.ValidationError:
        raise MalformedJson("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise MalformedJson(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not valid UTF-8 (byte {error.start}); send it as UTF-8") from None
    except RecursionError:
        raise MalformedJson("the body is nested too deeply") from None
    return fields


def take_metadata(fields: dict[str, msgspec.Raw]) -> dict[str, str]:
    """Take `metadata.trimtab` out of the fields, and `metadata` too if nothing else is in it. Raises BadRequest."""
    raw = fields.get("metadata")
    if raw is None:
        return {}
    try:
        metadata = _FIELDS.decode(raw)
    except msgspec.ValidationError:
        return {}  # not an object: the upstream says what it thinks of it
    ours = metadata.pop("trimtab", None)
    if ours is None:
        return {}
    try:
        taken = _STRINGS.decode(ours)
    except msgspec.ValidationError:
        raise BadRequest(
            'metadata.trimtab must be an object of strings, such as {"route": "support"}', param="metadata.trimtab"
        ) from None
    if metadata:
        fields["metadata"] = msgspec.Raw(msgspec.json.encode(metadata))
    else:
        del fields["metadata"]
    return taken


def take_model(fields: dict[str, msgspec.Raw]) -> str:
    """The `model` field. Raises BadRequest when it is missing or not a non-empty string."""
    raw = fields.get("model")
    if raw is None:
        raise BadRequest("model is missing; name the model to use", param="model")
    try:
        model = _STRING.decode(raw)
    except msgspec.ValidationError:
        model = ""
    if not model:
        raise BadRequest("model must be a non-empty string", param="model")
    return model


def check_messages(fields: dict[str, msgspec.Raw]) -> None:
    """Raise BadRequest unless `messages` is a non-empty array. Looks at its first bytes only."""
    raw = fields.get("messages")
    if raw is None:
        raise BadRequest("messages is missing; send an array of messages", param="messages")
    view = memoryview(raw)
    if view[0] != 0x5B:  # [
        raise BadRequest("messages must be an array of messages", param="messages")
    first = bytes(view[1:9]).lstrip() or bytes(view[1:]).lstrip()
    if first[:1] == b"]":
        raise BadRequest("messages must not be empty", param="messages")


def take_stream(fields: dict[str, msgspec.Raw]) -> bool:
    """The `stream` field, False when absent or null. Raises BadRequest for anything but a boolean."""
    raw = fields.get("stream")
    if raw is None:
        return False
    text = bytes(raw)
    if text == b"true":
        return True
    if text in (b"false", b"null"):
        return False
    raise BadRequest("stream must be true or false", param="stream")


def given(fields: dict[str, msgspec.Raw], *names: str) -> bool:
    """Whether one of the fields is present and not null."""
    return any(name in fields and bytes(fields[name]) != b"null" for name in names)


def decode_field(fields: dict[str, msgspec.Raw], name: str) -> Any:
    """A field's value, None when absent. Raises BadRequest when it cannot be decoded (such as a lone surrogate)."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"{name} cannot be read: {error}", param=name) from None


def _wrong(param: str, what: str) -> BadRequest:
    return BadRequest(f"{param} must be {what}", param=param)


def want_object(value: Any, param: str) -> dict[str, Any]:
    """The value as an object. Raises BadRequest."""
    if not isinstance(value, dict):
        raise _wrong(param, "an object")
    return value


def want_list(value: Any, param: str) -> list[Any]:
    """The value as an array. Raises BadRequest."""
    if not isinstance(value, list):
        raise _wrong(param, "an array")
    return value


def want_str(value: Any, param: str) -> str:
    """The value as a string. Raises BadRequest."""
    if not isinstance(value, str):
        raise _wrong(param, "a string")
    return value


def want_int(value: Any, param: str) -> int | None:
    """The value as an integer, None when null. Raises BadRequest."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(param, "an integer")
    return value


def want_number(value: Any, param: str) -> float | None:
    """The value as a number, None when null. Raises BadRequest."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(param, "a number")
    return value


def want_bool(value: Any, param: str) -> bool | None:
    """The value as a boolean, None when null. Raises BadRequest."""
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(param, "true or false")


def only(obj: dict[str, Any], known: frozenset[str], param: str, source: Dialect) -> None:
    """Raise Unsupported for the first key that is neither known nor null."""
    for key, value in obj.items():
        if key not in known and value is not None:
            raise unsupported(f"{param}.{key}" if param else key, source)


def with_usage_option(fields: dict[str, msgspec.Raw]) -> msgspec.Raw:
    """The `stream_options` of the fields with `include_usage` true; one that is no object is left as it is."""
    raw = fields.get("stream_options")
    options: dict[str, msgspec.Raw] = {}
    if raw is not None and bytes(raw) != b"null":
        try:
            options = _FIELDS.decode(raw)
        except msgspec.ValidationError:
            return raw
    options["include_usage"] = _TRUE
    return msgspec.Raw(msgspec.json.encode(options))


def upstream_object(data: bytes, what: str) -> dict[str, Any]:
    """Decode an upstream's JSON object. Raises UpstreamInvalid."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamInvalid(f"the upstream sent {what} that is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UpstreamInvalid(f"the upstream sent {what} that is not a JSON object")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one: for optional parts of what an upstream sends."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in an array; none if it is no array: for optional parts of what an upstream sends."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def joined_text(content: Any) -> str | None:
    """The text of a string, or of an array of nothing but text parts; None for all else, and where it is blank."""
    if isinstance(content, list):
        parts = [mapping(part) for part in content]
        if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return None
        content = "".join([part["text"] for part in parts])
    return content if isinstance(content, str) and content.strip() else None


def index_of(obj: dict[str, Any], default: int = 0) -> int:
    """The `index` of a part of a stream."""
    index = obj.get("index")
    return index if isinstance(index, int) else default
