"""`trimtab engine start|stop|logs`: an engine of the configuration as a supervised process of its own."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from trimtab import config as configuration
from trimtab.cli.engine_run import Managed, follow
from trimtab.cli.place import data_folder, gateway_options, print_lines
from trimtab.config import Config
from trimtab.stores import engine_runs
from trimtab.stores.engine_runs import Run
from trimtab.supervise import Child, Context, Supervisor

_LOOK_S = 0.05
_STOP_SLACK_S = 10.0
_SHOWN_LINES = 15
_TAIL_BYTES = 1 << 20


@click.command()
@click.argument("name")
@click.option("--detach", is_flag=True, help="Leave it running and return once it answers.")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 86_400), default=600.0, show_default=True,
              help="With --detach: seconds to wait for it; 0 returns at once.")  # fmt: skip
@gateway_options
def start(name: str, detach: bool, wait_s: float, **place: Any) -> None:
    """Run the engine NAME of the configuration: kinds llama_cpp and vllm.

    It is started again when it dies, after a wait that grows to ten seconds; Ctrl-C ends it. If it ends before it has
    answered once, the command fails and says why. `trimtab serve` uses an engine that runs already, and starts the
    others itself, so this is for an engine that is to outlive restarts of the gateway.

    \b
    trimtab engine start local
    trimtab engine start big --detach --wait 1200 && trimtab serve
    """
    as_json = place.pop("as_json")
    config = _config(place["config_path"], place["data_dir"])
    _require_managed(config, name)
    data_dir = Path(config.server.data_dir)
    claim = engine_runs.claim(data_dir, name)
    if claim is None:
        _already(engine_runs.last(data_dir, name), name)
    managed = Managed(config, name, "start", claim)
    log = engine_runs.fresh_log(data_dir, name)
    offset = log.stat().st_size if log.exists() else 0
    if detach:
        _detach(managed, log)
        claim.close()
        _wait_until_ready(managed.run, data_dir, log, offset, wait_s, as_json)
    else:
        sys.exit(_supervise(managed, log, offset, as_json))


@click.command()
@click.argument("name")
@gateway_options
def stop(name: str, **place: Any) -> None:
    """End the engine NAME that `trimtab engine start` runs.

    It gets SIGTERM; what is left of it after its time to stop (vllm 15 s, others 10 s) is killed.

    \b
    trimtab engine stop local
    """
    data_dir, run = _known(name, **place)
    if run is None or not engine_runs.is_claimed(data_dir, name):
        raise click.ClickException(f"engine {name} is not running; start it: trimtab engine start {name}")
    if run.owner == "serve":
        raise click.ClickException(
            f"engine {name} is a part of `trimtab serve` (pid {run.pid}), which stops it: end that"
        )
    began = time.monotonic()
    limit_s = getattr(configuration.find("engines", run.kind), "STOP_S", 10.0) + _STOP_SLACK_S
    with contextlib.suppress(ProcessLookupError):  # killed: its engine is just ending, too
        os.kill(run.pid, signal.SIGTERM)
    killed = not _gone(data_dir, name, limit_s)
    if killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGKILL)
        if not _gone(data_dir, name, limit_s):
            raise click.ClickException(
                f"engine {name} (pid {run.pid}) cannot be ended; see its log: trimtab engine logs {name}"
            )
    if place["as_json"]:
        seconds = round(time.monotonic() - began, 3)
        print_lines([{"engine": name, "pid": run.pid, "stopped": True, "killed": killed, "seconds": seconds}])
    else:
        click.echo(f"engine {name} (pid {run.pid}) has ended")


@click.command()
@click.argument("name")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="The last lines to show.")
@gateway_options
def logs(name: str, follows: bool, lines: int, **place: Any) -> None:
    """What the engine NAME wrote, and its starts and ends.

    An engine of kind llama_cpp that runs as a part of `trimtab serve` writes where that does.

    \b
    trimtab engine logs big -f
    """
    data_dir, _ = _known(name, **place)
    path = engine_runs.log_path(data_dir, name)
    if not path.exists():
        hint = "it was never started on its own; if it runs in `trimtab serve`, its lines are in that one's output"
        raise click.ClickException(f"engine {name} has no log in {path.parent}: {hint}")
    text, size = _tail(path, lines)
    for line in text:
        _print_line(name, line, place["as_json"])
    if follows:
        with contextlib.suppress(KeyboardInterrupt):
            for line in _lines(follow(path, size, lambda: False)):
                _print_line(name, line, place["as_json"])


# -- which engine


def _config(config_path: Path | None, data_dir: Path | None) -> Config:
    config = configuration.load(config_path, os.environ)
    if data_dir is None:
        return config
    server = msgspec.structs.replace(config.server, data_dir=str(data_dir.absolute()))
    return msgspec.structs.replace(config, server=server)


def _require_managed(config: Config, name: str) -> None:
    own = configuration.own_processes(config)
    if name in own:
        return
    there = f"there are: {', '.join(own)}" if own else 'there is none; add a table with kind = "llama_cpp" or "vllm"'
    if name in config.engines:
        kind = config.engines[name].kind
        raise click.ClickException(
            f"engine {name} ({kind}) is not started by Trimtab: start it where it runs. Of its own {there}"
        )
    raise click.ClickException(f"no engine {name}; of those that Trimtab starts {there}")


def _known(name: str, config_path: Path | None, data_dir: Path | None, **_: Any) -> tuple[Path, Run | None]:
    """The data folder and what runs, or ran last, under that name. Raises ClickException if there is no such engine."""
    folder = data_folder(data_dir, config_path)
    run = engine_runs.last(folder, name) if configuration.is_name(name) else None
    if run is None:
        _require_managed(_config(config_path, data_dir), name)
    return folder, run


def _already(run: Run | None, name: str) -> NoReturn:
    if run is None:
        raise click.ClickException(
            f"engine {name} is being started by another command; see: trimtab engine logs {name}"
        )
    if run.owner == "serve":
        raise click.ClickException(
            f"engine {name} runs already as a part of `trimtab serve` (pid {run.pid}, {run.url})"
        )
    raise click.ClickException(
        f"engine {name} runs already (pid {run.pid}, {run.url}); end it first: trimtab engine stop {name}"
    )


# -- its life


def _supervise(managed: Managed, log: Path, offset: int | None, as_json: bool) -> int:
    """Run the engine until it is told to stop; with an offset, show its log from there on. Returns the exit code."""
    _log_to(log)
    managed.say(pid=os.getpid())
    children = [managed.child(0)]
    if offset is not None:
        children.append(Child("log", lambda context: _show_log(context, managed, log, offset), 1))

    def ready() -> None:
        logging.info("engine %s answers at %s", managed.name, managed.run.url)
        if offset is not None:
            _announce(managed.run, log, as_json)

    return Supervisor(children, on_ready=ready).run()


def _detach(managed: Managed, log: Path) -> None:
    """Go on in a process that belongs to no terminal and no shell."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        for fd, target, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY), (2, log, os.O_WRONLY)):
            opened = os.open(target, flags | os.O_APPEND | (os.O_CREAT if fd else 0), 0o600)
            os.dup2(opened, fd)
            os.close(opened)
        code = _supervise(managed, log, None, as_json=False)
    finally:
        os._exit(code)


def _wait_until_ready(run: Run, data_dir: Path, log: Path, offset: int, wait_s: float, as_json: bool) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        ended = not engine_runs.is_claimed(data_dir, run.engine)
        found = engine_runs.last(data_dir, run.engine)
        ours = found if found is not None and found.began_at == run.began_at else None
        if ended:
            text = _lines_of(log, offset)[-_SHOWN_LINES:]
            raise click.ClickException("\n".join([f"engine {run.engine} did not start; the end of {log}:", *text]))
        if ours is not None and (ours.ready or not wait_s):
            _announce(ours, log, as_json)
            return
        if wait_s and time.monotonic() > deadline:
            way_out = f"it goes on: trimtab engine logs {run.engine} -f, or trimtab engine stop {run.engine}"
            raise click.ClickException(f"engine {run.engine} does not answer after {wait_s:g} s; {way_out}")
        time.sleep(_LOOK_S)


def _announce(run: Run, log: Path, as_json: bool) -> None:
    if as_json:
        known = {"engine": run.engine, "kind": run.kind, "pid": run.pid, "url": run.url, "log": str(log)}
        print_lines([known])
    else:
        click.echo(f"engine {run.engine} (pid {run.pid}): {run.url}/v1; its log: {log}")


def _show_log(context: Context, managed: Managed, log: Path, offset: int) -> int:
    """Copy what is added to the log to stderr, to its end when told to stop."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    if managed.claim is not None:
        managed.claim.close()
    context.ready()
    for piece in follow(log, offset, lambda: bool(stopping)):
        with contextlib.suppress(OSError):  # nobody reads any more
            os.write(2, piece)
    return 0


def _log_to(path: Path) -> None:
    handler = logging.handlers.WatchedFileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s trimtab %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _gone(data_dir: Path, name: str, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while engine_runs.is_claimed(data_dir, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


# -- its log


def _tail(path: Path, count: int) -> tuple[list[str], int]:
    """The last lines, of at most 1 MiB, and the size up to which they were read."""
    size = path.stat().st_size
    found = _lines_of(path, max(0, size - _TAIL_BYTES), size)
    return (found[-count:] if count else []), size


def _lines_of(path: Path, offset: int, end: int | None = None) -> list[str]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        return file.read(-1 if end is None else end - offset).decode(errors="replace").splitlines()
    return []


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def _print_line(name: str, line: str, as_json: bool) -> None:
    click.echo(msgspec.json.encode({"engine": name, "line": line}) if as_json else line)
