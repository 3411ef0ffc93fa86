"""What a suite is run against: the settings of a file, under a gateway of our own, or a gateway that is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from trimtab import config as configuration
from trimtab.errors import BadRequest
from trimtab.measure.gateway import GatewayFailed, of_config
from trimtab.transport import Origin, header_lines

_READY_S: Final = 300.0  # the first start may fetch weights
_CONNECT_S: Final = 5.0
_OURS: Final = "trimtab-"  # embedding models of the gateway itself


class Side(msgspec.Struct, frozen=True):
    """One of what is compared: a configuration file's text, or a URL up to /v1."""

    name: str
    model: str
    path: Path | None = None
    url: str = ""

    @property
    def settings(self) -> str:
        """The file's text; "" of a URL. Files hold no secrets, only the names of variables that do."""
        return "" if self.path is None else self.path.read_text(encoding="utf-8")


def parse(said: str, model: str) -> Side:
    """`[NAME=]FILE.toml[@MODEL]`, or `[NAME=]URL[@MODEL]`; `model` is the one to ask where none is named.

    Raises BadRequest, and ConfigError for a configuration with mistakes.
    """
    name, equals, where = said.partition("=")
    if not equals or "://" in name or "/" in name:
        name, where = "", said
    where, _, own = where.rpartition("@") if "@" in where and not where.endswith(".toml") else (where, "", "")
    model = own or model
    if where.startswith(("http://", "https://")):
        return Side(name or where.split("://")[1].split("/")[0], model, url=where.rstrip("/"))
    path = Path(where)
    if not path.is_file():
        raise BadRequest(
            f"{said!r}: there is no file {where!r}; name a configuration, or a URL up to /v1", param="config"
        )
    config = configuration.load(path, os.environ)
    models = sorted(config.models)
    if not model and len(models) == 1:
        model = models[0]
    if not model:
        known = ", ".join(models) or "any that the client names"
        raise BadRequest(
            f"{said!r}: say which model to ask with --model, or as {said}@MODEL; it has {known}", param="model"
        )
    return Side(name or path.stem, model, path=path)


@asynccontextmanager
async def serving(side: Side, say: Callable[[str], None]) -> AsyncIterator[str]:
    """The base URL, up to /v1, of the gateway to ask; one of our own is started and stopped. Raises GatewayFailed."""
    if side.path is None:
        yield side.url
        return
    folder = Path(tempfile.mkdtemp(prefix="trimtab-eval-"))
    gateway = of_config(side.path, folder)
    try:
        gateway.start()
        await gateway.wait_ready(_READY_S, say)
        yield f"{gateway.base_url}/v1"
    finally:
        gateway.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def named_model(side: Side, headers: list[tuple[bytes, bytes]]) -> Side:
    """The side with its model; of a URL that serves a single one, that. Raises BadRequest, GatewayFailed."""
    if side.model:
        return side
    origin = Origin(side.url)
    try:
        reply = await origin.request("GET", f"{origin.base_path}/models", header_lines(headers), b"", _CONNECT_S)
        data = await reply.read(1 << 20)
        if reply.status != 200:
            raise GatewayFailed(f"{side.url}/models answered {reply.status}: {data[:200].decode(errors='replace')}")
        models = [one["id"] for one in msgspec.json.decode(data)["data"] if not one["id"].startswith(_OURS)]
    finally:
        await origin.close()
    if len(models) != 1:
        raise BadRequest(f"{side.url} serves {', '.join(models) or 'any model'}: say which with --model", param="model")
    return msgspec.structs.replace(side, model=models[0])
