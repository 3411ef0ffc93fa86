"""POST /v1/embeddings by the gateway's own models; those of other names are passed on."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, Literal

import msgspec

from trimtab.errors import BadRequest, Overloaded
from trimtab.flight import Finish
from trimtab.ports import Embeddings

PATH: Final = "/v1/embeddings"
MODELS: Final = ("trimtab-accurate", "trimtab-fast")  # all-MiniLM-L6-v2 (384) and WordLlama (256)
_MOST_TEXTS: Final = 512
_TIMEOUT_S: Final = 60.0

_Texts = Annotated[list[str], msgspec.Meta(min_length=1, max_length=_MOST_TEXTS)]


class _Asked(msgspec.Struct):
    model: str
    input: str | _Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def answer(body: bytes, embeddings: Embeddings) -> Finish:
    """The reply in OpenAI's shape. Raises BadRequest naming the field, Overloaded while the models are not there."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except msgspec.DecodeError as error:
        field = "encoding_format" if "encoding_format" in str(error) else "input"
        raise BadRequest(
            f"{error}; send a text, or 1 to {_MOST_TEXTS} texts (token ids are not taken)", param=field
        ) from None
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not all(texts):
        raise BadRequest("a text is empty; leave it out", param="input")
    if asked.dimensions is not None:
        raise BadRequest(f"{asked.model} has one size; leave dimensions out", param="dimensions")
    found = await embeddings.embed(asked.model == MODELS[0], texts, _TIMEOUT_S)
    if found is None:
        raise Overloaded("the embedding models are still loading, or busy; try again in a moment")
    size = len(found.vectors) // len(texts)
    raw = [found.vectors[n * size : (n + 1) * size] for n in range(len(texts))]
    data = [
        {"object": "embedding", "index": n, "embedding": _shown(vector, asked.encoding_format)}
        for n, vector in enumerate(raw)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    reply = {"object": "list", "data": data, "model": asked.model, "usage": usage}
    return Finish(200, [(b"content-type", b"application/json")], msgspec.json.encode(reply))


def _shown(vector: bytes, form: str) -> Any:
    return base64.b64encode(vector).decode() if form == "base64" else memoryview(vector).cast("f").tolist()
