"""The recorded shapes under tests/golden/protocols, and the official SDKs' own readers as judges."""

from pathlib import Path

import anthropic.types
import msgspec
from anthropic.lib.streaming._messages import accumulate_event
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from trimtab.protocols.sse import read_events

FOLDER = Path(__file__).parent / "protocols"
OPENAI_STREAMS = sorted(path.name for path in FOLDER.glob("openai_*.sse"))
ANTHROPIC_STREAMS = sorted(path.name for path in FOLDER.glob("anthropic_*.sse"))
_EVENT = TypeAdapter(anthropic.types.RawMessageStreamEvent)


def golden(name):
    return (FOLDER / name).read_bytes()


def data_of(sse):
    return [msgspec.json.decode(data) for _, data in read_events(sse) if not data.startswith(b"[DONE]")]


def openai_sdk_reads(sse):
    """What the openai SDK makes of a stream, each chunk validated strictly."""
    state = ChatCompletionStreamState()
    for chunk in data_of(sse):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return state.current_completion_snapshot


def anthropic_sdk_reads(sse):
    """What the anthropic SDK makes of a stream, each event validated strictly."""
    message, partial = None, {}
    for name, data in read_events(sse):
        event = msgspec.json.decode(data)
        assert event["type"] == name.decode()
        if event["type"] != "ping":
            parsed = _EVENT.validate_python(event)
            message = accumulate_event(event=parsed, current_snapshot=message, json_bufs=partial)
    return message


def openai_body(body):
    return ChatCompletion.model_validate(msgspec.json.decode(body))


def anthropic_body(body):
    return anthropic.types.Message.model_validate(msgspec.json.decode(body))
