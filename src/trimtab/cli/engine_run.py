"""An engine as a supervised child: its port, its log, and what the files say of it meanwhile."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from trimtab import config as configuration
from trimtab.config import Config
from trimtab.errors import ConfigError
from trimtab.stores import engine_runs
from trimtab.stores.engine_runs import Claim, Run
from trimtab.supervise import GIVE_UP, Child, Context

_log = logging.getLogger("trimtab")
_LOOK_S = 0.2


class Managed:
    """An engine that this process supervises. Without a `claim` nothing is written down of it."""

    def __init__(self, config: Config, name: str, owner: Literal["serve", "start"], claim: Claim | None) -> None:
        engine = config.engines[name]
        module = configuration.find("engines", engine.kind)
        self.name = name
        self.claim = claim
        self._config = config
        self._data_dir = Path(config.server.data_dir)
        self._own_log = owner == "start" or getattr(module, "OWN_LOG", False)
        self._stop_s = float(getattr(module, "STOP_S", 10.0))
        before = engine_runs.last(self._data_dir, name) if claim else None
        self.holder, port = _port(config, name, before)
        slots = int(getattr(engine.settings, "parallel", 0))
        self.run = Run(name, engine.kind, owner, os.getpid(), port, time.time(), slots)

    @property
    def log_path(self) -> Path | None:
        """Where the engine's output goes; None: where this process's own goes."""
        return engine_runs.log_path(self._data_dir, self.name) if self._own_log else None

    def child(self, group: int, first: Callable[[], None] = lambda: None) -> Child:
        """The supervised process; `first` is called in it before all else."""

        def run(context: Context) -> int | None:
            first()
            return self._serve(context)

        return Child(f"engine {self.name}", run, group, grace_s=self._stop_s)

    def say(self, **changes: object) -> None:
        """Write down what is new of the engine. A disk that is full does not stop it."""
        self.run = msgspec.structs.replace(self.run, **changes)
        if self.claim is None:
            return
        try:
            self.claim.say(self.run)
        except OSError as error:
            _log.warning("`trimtab engine` will not know of engine %s: %s", self.name, error)

    def _serve(self, context: Context) -> int | None:
        from trimtab.app import run_engine

        self.say(starts=context.start, ready=False)
        terminal = os.dup(2)
        if self._own_log:
            _redirect(engine_runs.fresh_log(self._data_dir, self.name))

        def ready() -> None:
            self.say(ready=True)
            context.ready()

        try:
            code = run_engine(self._config, self.name, self.run.port, ready)
        except ConfigError as error:
            os.dup2(terminal, 2)
            _log.error("%s", error)  # no restart mends it
            return GIVE_UP
        if self.run.owner == "start" and context.start == 1 and not self.run.ready:
            _log.error("engine %s ended before it answered: see above", self.name)
            return GIVE_UP  # somebody is watching, and can mend it
        return code


def follow(path: Path, offset: int, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """What is in a file from `offset` on, and what is added until `stopped`; a file put in its place is read whole."""
    inode = 0
    while True:
        last = stopped()
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size < offset or found.st_ino != (inode or found.st_ino):
                    offset = 0
                inode = found.st_ino
                file.seek(offset)
                while piece := file.read(1 << 16):
                    offset += len(piece)
                    yield piece
        except FileNotFoundError:
            offset = 0
        if last:
            return
        time.sleep(_LOOK_S)


def _redirect(path: Path) -> None:
    """Send this process's output, and that of those it starts, to the end of a file."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _port(config: Config, name: str, before: Run | None) -> tuple[socket.socket | None, int]:
    """The port to serve on, and the socket that holds it, if the engine can do with one: as before, where that is free.

    Raises ConfigError if the configured one is taken.
    """
    engine = config.engines[name]
    reserve = configuration.find("engines", engine.kind).reserve_port
    fixed = int(getattr(engine.settings, "port", 0))
    for wanted in [fixed] if fixed else [before.port] if before else []:
        try:
            found: tuple[socket.socket | None, int] = reserve(wanted)
        except OSError as error:
            if fixed:
                way_out = "end what listens there, or set another (0 takes any free one)"
                message = f"engines.{name}.port: {fixed} is taken ({error.strerror}); {way_out}"
                raise ConfigError([message]) from error
        else:
            return found
    held, port = reserve()
    return held, int(port)
