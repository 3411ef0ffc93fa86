"""Keep forked children alive: restart the ones that die, stop them in order, let none outlive the supervisor.

Nothing here knows what the children do. The supervisor stays single-threaded and imports little, so a fork is cheap
and safe; a child builds its event loop, threads and native libraries after the fork.

    forked -> starting --ready()--> up --dies--> waiting (0.1 s, doubled up to 10 s) -> forked again
    stopping: SIGTERM to the lowest `group`, its `grace_s` to drain, SIGKILL; then the next group.

If the supervisor itself is killed, each child is told twice over: Linux sends it SIGTERM (PR_SET_PDEATHSIG), and
everywhere the pipe whose write end only the supervisor holds comes to its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

import msgspec

from trimtab.orphans import death_signal

log = logging.getLogger(__name__)

GIVE_UP: Final = 78
"""Exit code (EX_CONFIG of sysexits) of a child that no restart can mend: everything stops and `run` returns it."""

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Backoff(msgspec.Struct, frozen=True):
    """How long a dead child waits: `first_s`, doubled with each death up to `max_s`; reset once it lived `reset_s`."""

    first_s: float = 0.1
    max_s: float = 10.0
    reset_s: float = 30.0

    def delay_s(self, deaths: int) -> float:
        """Seconds before the restart that follows the `deaths`-th death in a row (from 1)."""
        return float(min(self.max_s, self.first_s * 2.0 ** min(deaths - 1, 60)))


class Context:
    """What a child knows about its supervisor."""

    def __init__(self, name: str, start: int, parent_fd: int, ready_fd: int) -> None:
        self.name = name
        self.start = start
        """1 for the first start, one more for each restart."""
        self.parent_fd = parent_fd
        """Readable, at its end, once the supervisor is gone (for `loop.add_reader`); never holds data."""
        self._ready_fd = ready_fd

    def ready(self) -> None:
        """Say that the child does its work now; call it once signal handlers stand. Idempotent, main thread.

        A reload that came earlier was held back and is delivered here as SIGHUP.
        """
        if self._ready_fd < 0:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ready_fd, b"1")
        os.close(self._ready_fd)
        self._ready_fd = -1
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class Child(msgspec.Struct, frozen=True):
    """One supervised process.

    `run` is called in the forked process, main thread, default signal handlers; its result is the exit code (None is
    0). A child that must drain handles SIGTERM; one that does not is ended by it.
    """

    name: str
    run: Callable[[Context], int | None]
    group: int = 0  # lower groups are stopped first, and wholly, before the next
    ready_timeout_s: float = 0.0  # killed and restarted if not ready by then; 0 waits for ever
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    restart: bool = True  # False: its end, however it comes, stops everything
    reload: bool = False  # gets SIGHUP after an accepted reload


class _Running:
    """The supervisor's own notes about one child."""

    __slots__ = ("child", "deadline", "deaths", "pid", "ready", "ready_fd", "restart_at", "started", "starts")

    def __init__(self, child: Child) -> None:
        self.child = child
        self.pid = 0  # 0 while it is not running
        self.starts = 0
        self.deaths = 0  # in a row
        self.started = 0.0
        self.restart_at: float | None = 0.0  # monotonic; None while it runs or for good
        self.deadline: float | None = None  # monotonic; SIGKILL then
        self.ready = False
        self.ready_fd = -1


def parent_gone(parent_fd: int, callback: Callable[[], None]) -> None:
    """Call `callback` once the supervisor is gone, from a daemon thread that waits on `Context.parent_fd`."""

    def wait() -> None:
        while os.read(parent_fd, 1):
            pass
        callback()

    threading.Thread(target=wait, name="parent-gone", daemon=True).start()


class Supervisor:
    """Runs `children` until a signal or a child ends it.

    SIGTERM or SIGINT stops in order; another SIGINT kills at once. SIGHUP calls `on_reload` here (False or an
    exception keeps what runs) and then signals the children that want it; children restarted later are forked from
    this process, so they see whatever `on_reload` changed. `on_ready` is called once, when every child has been ready.
    A SIGHUP because the terminal was closed stops (under nohup it does nothing). Children are in process groups of
    their own: Ctrl-C reaches the supervisor alone.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        on_reload: Callable[[], bool] | None = None,
        on_ready: Callable[[], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._all = [_Running(child) for child in children]
        self._on_reload = on_reload
        self._on_ready = on_ready
        self._backoff = backoff or Backoff()
        self._selector: selectors.BaseSelector
        self._lifeline = (-1, -1)
        self._wakeup = (-1, -1)
        self._signals: list[int] = []
        self._stopping = False
        self._groups: list[int] = []  # still to be stopped
        self._code = 0
        self._terminal = _has_terminal()
        self._nohup = False

    def run(self) -> int:
        """Fork the children and watch them; returns 0 after an orderly stop, 130 after a forced one.

        When a child's end stopped it (`restart=False` or `GIVE_UP`), the result is that child's exit code.

        Call it in the main thread of a process without other threads. Handlers for SIGTERM, SIGINT, SIGHUP and SIGCHLD
        are installed and put back at the end; no child is left alive, whatever happens.
        """
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()
        self._wakeup = os.pipe()
        for fd in self._wakeup:
            os.set_blocking(fd, False)
        self._selector.register(self._wakeup[0], selectors.EVENT_READ)
        before = {number: signal.signal(number, self._note) for number in _HANDLED}
        self._nohup = before[signal.SIGHUP] == signal.SIG_IGN
        wakeup_before = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        try:
            while any(running.pid or running.restart_at is not None for running in self._all):
                self._fork_due()
                self._wait()
            return self._code
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._close_fds()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    # -- starting

    def _fork_due(self) -> None:
        now = time.monotonic()
        for running in self._all:
            if running.restart_at is not None and running.restart_at <= now:
                self._fork(running)

    def _fork(self, running: _Running) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # or the child would write the same bytes again
        ready_read, ready_write = os.pipe()
        parent_pid = os.getpid()
        running.starts += 1
        # No signal may run the supervisor's handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(ready_read)
            os.close(ready_write)
            self._wait_again(running, f"{running.child.name} cannot be forked: {error}")
            return
        if pid == 0:
            self._become(running, ready_read, ready_write, parent_pid)  # never returns
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(ready_write)
        running.pid, running.ready, running.ready_fd = pid, False, ready_read
        running.started, running.restart_at = time.monotonic(), None
        timeout_s = running.child.ready_timeout_s
        running.deadline = running.started + timeout_s if timeout_s else None
        self._selector.register(ready_read, selectors.EVENT_READ, running)

    def _become(self, running: _Running, ready_read: int, ready_write: int, parent_pid: int) -> None:
        """The forked side: shed what is the supervisor's, run the child, exit without unwinding the parent's stack."""
        code = 1
        try:
            for number in _HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            os.close(ready_read)
            self._close_fds(keep=self._lifeline[0])
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # out of the terminal's group, it may still write there
            child = running.child
            _guard(self._lifeline[0], parent_pid, child.grace_s)
            held = {signal.SIGHUP} if child.reload else set()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_HANDLED) - held)
            code = child.run(Context(child.name, running.starts, self._lifeline[0], ready_write)) or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    # -- watching

    def _wait(self) -> None:
        for key, _ in self._selector.select(self._timeout_s()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup[0], 512)
            else:
                self._heard_ready(key.data)
        while self._signals:
            self._handle(self._signals.pop(0))
        self._reap()
        self._enforce()
        if self._stopping:
            self._stop_next_group()

    def _timeout_s(self) -> float | None:
        times = [at for running in self._all for at in (running.restart_at, running.deadline) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _heard_ready(self, running: _Running) -> None:
        said = os.read(running.ready_fd, 1)
        self._drop_ready_fd(running)
        if not said:  # it died, or will never say so: the deadline stands
            return
        running.ready = True
        if not self._stopping:
            running.deadline = None
        if self._on_ready is not None and all(other.ready for other in self._all):
            callback, self._on_ready = self._on_ready, None
            callback()

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return  # it only woke us
        if number == signal.SIGHUP:
            closed = self._terminal and not _has_terminal()
            self._terminal = self._terminal and not closed
            if not closed and not self._stopping:
                self._reload()
            if not closed or self._nohup:
                return
        if not self._stopping:
            self._stop(0, f"{signal.Signals(number).name}: stopping")
        elif number == signal.SIGINT:
            log.warning("SIGINT again: killing all children")
            self._code = 130
            self._kill_all()

    def _reload(self) -> None:
        try:
            accepted = self._on_reload is not None and self._on_reload()
        except Exception:
            log.exception("reload failed; what runs stays as it is")
            return
        if not accepted:
            log.warning("reload refused; what runs stays as it is")
            return
        for running in self._all:
            if running.pid and running.child.reload:
                os.kill(running.pid, signal.SIGHUP)
        log.info("reloaded")

    def _reap(self) -> None:
        for running in self._all:
            if running.pid:
                pid, status = os.waitpid(running.pid, os.WNOHANG)
                if pid:
                    self._died(running, os.waitstatus_to_exitcode(status))

    def _died(self, running: _Running, code: int) -> None:
        child, pid, was_ready = running.child, running.pid, running.ready
        lived_s = time.monotonic() - running.started
        running.pid, running.deadline, running.ready = 0, None, False
        self._drop_ready_fd(running)
        how = f"exit code {code}" if code >= 0 else f"signal {_signal_name(-code)}"
        what = f"{child.name} (pid {pid}) ended after {lived_s:.1f} s with {how}{'' if was_ready else ', never ready'}"
        if self._stopping:
            log.debug("%s", what)
        elif not child.restart or code == GIVE_UP:
            self._stop(code if code >= 0 else 128 - code, f"{what}: stopping all")
        else:
            if lived_s >= self._backoff.reset_s:
                running.deaths = 0
            self._wait_again(running, what)

    def _wait_again(self, running: _Running, what: str) -> None:
        running.deaths += 1
        delay_s = self._backoff.delay_s(running.deaths)
        running.restart_at = time.monotonic() + delay_s
        log.warning("%s; starting it again in %g s", what, delay_s)

    def _enforce(self) -> None:
        now = time.monotonic()
        for running in self._all:
            if running.pid and running.deadline is not None and running.deadline <= now:
                running.deadline = None
                child = running.child
                state, limit_s = ("stopped", child.grace_s) if self._stopping else ("ready", child.ready_timeout_s)
                log.warning("%s (pid %d) not %s within %g s: killing it", child.name, running.pid, state, limit_s)
                os.kill(running.pid, signal.SIGKILL)

    # -- stopping

    def _stop(self, code: int, why: str) -> None:
        log.log(logging.ERROR if code else logging.INFO, "%s", why)
        self._stopping, self._code = True, code
        self._groups = sorted({running.child.group for running in self._all})
        for running in self._all:
            running.restart_at = running.deadline = None

    def _stop_next_group(self) -> None:
        """SIGTERM to the lowest group with children alive, unless one is being stopped already."""
        if any(running.pid and running.deadline is not None for running in self._all):
            return
        while self._groups:
            group = self._groups.pop(0)
            alive = [running for running in self._all if running.pid and running.child.group == group]
            for running in alive:
                os.kill(running.pid, signal.SIGTERM)
                running.deadline = time.monotonic() + running.child.grace_s
            if alive:
                return

    def _kill_all(self) -> None:
        for running in self._all:
            running.restart_at = None
            if running.pid:
                os.kill(running.pid, signal.SIGKILL)
        for running in self._all:
            if running.pid:
                os.waitpid(running.pid, 0)
                running.pid = 0
                self._drop_ready_fd(running)

    def _drop_ready_fd(self, running: _Running) -> None:
        if running.ready_fd >= 0:
            self._selector.unregister(running.ready_fd)
            os.close(running.ready_fd)
            running.ready_fd = -1

    def _close_fds(self, keep: int = -1) -> None:
        """Close every descriptor of the supervisor; never the listening sockets that it merely passes on."""
        self._selector.close()
        fds = [*self._lifeline, *self._wakeup, *(running.ready_fd for running in self._all)]
        for fd in fds:
            if fd >= 0 and fd != keep:
                os.close(fd)


def _guard(parent_fd: int, parent_pid: int, grace_s: float) -> None:
    """End this process soon after the supervisor's death: SIGTERM, then SIGKILL after `grace_s`."""
    told_by_kernel = death_signal()()
    if os.getppid() != parent_pid:  # it died before we could ask
        os._exit(1)

    def end() -> None:
        if not told_by_kernel:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    parent_gone(parent_fd, end)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
