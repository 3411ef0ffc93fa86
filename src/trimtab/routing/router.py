"""A trained router at rest: one file that says what it was learned from and what is expected of it.

The head can be read without numpy: a gateway's workers need no more of it, the models themselves run in the process
beside them. Source of the layout: msgpack, a version first; nothing in it is executed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

import msgspec

from trimtab.errors import ConfigError

FORMAT: Final = 1
SUFFIX: Final = ".router"
QUANTILES: Final = 512
DEFAULT: Final = Path(__file__).with_name("default.router")  # shipped; see default.router.md
Kind = Literal["always weak", "always strong", "prompt", "cascade"]


class Head(msgspec.Struct, frozen=True):
    """What a router is for and what was expected of it where it was trained.

    `weak`, `strong` and `second` are the models' names there ("" where it was trained on other models than yours).
    `kind`, `skip` and `accept` are the setting that saved most at `floor` of the best single model's score, as
    `setting.Setting` says, `kept` and `saved` what it did on left-out prompts, `pays` whether it is worth its trouble.
    `gains` and `after` are quantiles, in order, of the left-out prompts' expected gains before and after the weak
    model's answer (`after` is empty where no answers were known). `skill` is the correlation of predicted and true gain
    on left-out prompts, in standard errors from none.
    """

    weak: str
    strong: str
    second: str
    kind: Kind
    skip: float | None
    accept: float | None
    floor: float
    kept: float
    saved: float
    pays: bool
    reason: str
    rows: int  # prompts learned from
    skill: float
    trained_on: str  # in words: which data, under which licence
    data_sha256: str
    gains: tuple[float, ...]
    after: tuple[float, ...] = ()


class Router(msgspec.Struct, frozen=True):
    """The file: its head, and the fitted models as `stored.dumps` wrote them (`acceptance` empty if there is none)."""

    format: int
    head: Head
    predictor: bytes
    acceptance: bytes = b""


def read(path: Path) -> tuple[Router, str]:
    """A router, and the hash that names it (16 hex digits). Raises ConfigError that says what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"cannot read the router {path} ({error.strerror}); train one with `trimtab route train`"
        raise ConfigError([message]) from error
    try:
        router = msgspec.msgpack.decode(data, type=Router)
    except msgspec.MsgspecError as error:
        raise ConfigError([f"{path} is no router ({error}); train one with `trimtab route train`"]) from error
    if router.format != FORMAT:
        raise ConfigError([f"{path} was made by another version of Trimtab; train it again"])
    return router, hashlib.sha256(data).hexdigest()[:16]


def write(path: Path, router: Router) -> None:
    """Write it whole or not at all. Raises OSError."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.msgpack.encode(router))
    part.replace(path)
