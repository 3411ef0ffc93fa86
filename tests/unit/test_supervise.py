"""The supervisor with real forked processes, each test in a fresh interpreter that it signals from outside."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from trimtab.supervise import Backoff

PRELUDE = """
import asyncio, logging, os, signal, sys, time
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="log %(message)s", force=True)
from trimtab import supervise
from trimtab.supervise import Backoff, Child, Context, GIVE_UP, Supervisor
FAST = Backoff(first_s=0.01, max_s=0.05)

def say(*words):
    os.write(1, (" ".join(str(word) for word in words) + "\\n").encode())

def steady(ctx, drain_s=0.0, deaf=False):
    def term(number, frame):
        say("term", ctx.name)
        if not deaf:
            time.sleep(drain_s)
            say("gone", ctx.name)
            os._exit(0)
    signal.signal(signal.SIGTERM, term)
    signal.signal(signal.SIGHUP, lambda number, frame: say("hup", ctx.name))
    say("up", ctx.name, os.getpid(), ctx.start)
    ctx.ready()
    while True:
        signal.pause()
"""
END = "\nsay('returned', {supervisor}.run())\n"


class Process:
    """A supervisor in an interpreter of its own, and the lines that it and its children wrote."""

    def __init__(self, code: str, stdin: int | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        self._out = self.popen.stdout
        self.lines: list[str] = []

    @property
    def pid(self) -> int:
        return self.popen.pid

    def until(self, start: str) -> list[str]:
        """Read up to a line that starts so; its words."""
        for line in self._out:
            self.lines.append(line.rstrip())
            if line.startswith(start):
                return line.split()
        raise AssertionError(f"ended without {start!r}: {self.lines}")

    def until_all(self, *starts: str) -> list[list[str]]:
        """Read until a line of each start was seen, in whatever order; their words in the order asked for."""
        found: dict[str, list[str]] = {}
        for line in self._out:
            self.lines.append(line.rstrip())
            for start in starts:
                if line.startswith(start):
                    found.setdefault(start, line.split())
            if len(found) == len(starts):
                return [found[start] for start in starts]
        raise AssertionError(f"ended without all of {starts}: {self.lines}")

    def rest(self) -> list[str]:
        """Read to the end, which comes only when every process that shares this output is gone."""
        self.lines += [line.rstrip() for line in self._out]
        self.popen.wait()
        return self.lines

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []
    watchdog = signal.signal(signal.SIGALRM, lambda *_: [os.killpg(one.pid, signal.SIGKILL) for one in started])
    signal.alarm(60)  # a hung test ends with what it has read

    def launch(code: str, supervisor: str = "supervisor", stdin: int | None = None) -> Process:
        started.append(Process(textwrap.dedent(code) + END.format(supervisor=supervisor), stdin))
        return started[-1]

    yield launch
    signal.alarm(0)
    signal.signal(signal.SIGALRM, watchdog)
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
        one.rest()
        one._out.close()


def test_backoff_doubles_to_its_ceiling():
    backoff = Backoff()
    assert [backoff.delay_s(deaths) for deaths in (1, 2, 3, 7, 8, 10_000)] == [0.1, 0.2, 0.4, 6.4, 10.0, 10.0]


def test_a_killed_child_is_started_again_and_the_log_says_why(start):
    one = start("supervisor = Supervisor([Child('a', steady), Child('b', steady)], backoff=FAST)")
    first, _ = one.until_all("up a", "up b")
    os.kill(int(first[2]), signal.SIGKILL)
    again = one.until("up a")
    assert again[2] != first[2]
    assert again[3] == "2"
    assert any(f"a (pid {first[2]}) ended" in line and "signal SIGKILL" in line for line in one.lines)
    one.signal(signal.SIGTERM)
    assert one.rest()[-1] == "returned 0"
    assert sum(line.startswith("up b") for line in one.lines) == 1


def test_a_child_that_keeps_dying_waits_longer_each_time(start):
    one = start("supervisor = Supervisor([Child('a', lambda ctx: 3)], backoff=Backoff(first_s=0.01, max_s=0.04))")
    for _ in range(4):
        one.until("log a")
    waits = [line.rsplit(" in ", 1)[1] for line in one.lines if line.startswith("log a")]
    assert waits == ["0.01 s", "0.02 s", "0.04 s", "0.04 s"]
    assert all("exit code 3, never ready" in line for line in one.lines)
    one.signal(signal.SIGTERM)
    one.rest()


def test_a_long_life_forgets_the_deaths_before(start):
    code = """
    def run(ctx):
        if ctx.start > 2:
            time.sleep(1.2)
    supervisor = Supervisor([Child('a', run)], backoff=Backoff(first_s=0.01, max_s=9, reset_s=1.0))
    """
    one = start(code)
    for _ in range(3):
        one.until("log a")
    waits = [line.rsplit(" in ", 1)[1] for line in one.lines if line.startswith("log a")]
    assert waits == ["0.01 s", "0.02 s", "0.01 s"]
    one.signal(signal.SIGTERM)
    one.rest()


def test_an_exception_is_shown_and_is_exit_code_1(start):
    one = start("supervisor = Supervisor([Child('a', lambda ctx: 1 / 0)], backoff=FAST)")
    one.until("log a")
    assert any("ZeroDivisionError" in line for line in one.lines)
    assert "exit code 1" in one.lines[-1]
    one.signal(signal.SIGTERM)
    one.rest()


def test_groups_stop_in_order_each_drained_before_the_next(start):
    code = """
    def slow(ctx):
        steady(ctx, drain_s=0.2)
    supervisor = Supervisor([Child('engine', steady, group=2), Child('ingester', slow, group=1),
                             Child('w1', slow), Child('w2', steady)])
    """
    one = start(code)
    one.until_all("up engine", "up ingester", "up w1", "up w2")
    one.signal(signal.SIGTERM)
    story = [line for line in one.rest() if line.startswith(("term", "gone", "returned"))]
    assert sorted(story[:4]) == ["gone w1", "gone w2", "term w1", "term w2"]
    assert story[4:] == ["term ingester", "gone ingester", "term engine", "gone engine", "returned 0"]


def test_a_child_that_will_not_stop_is_killed_after_its_grace(start):
    code = """
    supervisor = Supervisor([Child('deaf', lambda ctx: steady(ctx, deaf=True), grace_s=0.1),
                             Child('b', steady, group=1)])
    """
    one = start(code)
    one.until_all("up deaf", "up b")
    one.signal(signal.SIGTERM)
    lines = one.rest()
    assert any("not stopped within 0.1 s: killing it" in line for line in lines)
    assert lines[-2:] == ["gone b", "returned 0"]


def test_a_second_interrupt_kills_at_once(start):
    one = start("supervisor = Supervisor([Child('deaf', lambda ctx: steady(ctx, deaf=True), grace_s=1000)])")
    one.until("up deaf")
    one.signal(signal.SIGINT)
    one.until("term deaf")
    one.signal(signal.SIGINT)
    assert one.rest()[-1] == "returned 130"


TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup has it ignored
def slow(ctx):
    steady(ctx, drain_s=0.1)
supervisor = Supervisor([Child('a', slow), Child('b', slow)], on_reload=lambda: True)
"""


def test_ctrl_c_reaches_the_supervisor_alone(start):
    master, slave = pty.openpty()
    one = start(TERMINAL, stdin=slave)
    os.close(slave)
    one.until_all("up a", "up b")
    os.write(master, b"\x03")
    lines = one.rest()
    os.close(master)
    assert lines[-1] == "returned 0"
    assert {"gone a", "gone b"} <= set(lines)
    assert not any("KeyboardInterrupt" in line for line in lines)


def test_a_closed_terminal_stops_it(start):
    master, slave = pty.openpty()
    one = start(TERMINAL, stdin=slave)
    os.close(slave)
    one.until_all("up a", "up b")
    os.close(master)
    lines = one.rest()
    assert {"gone a", "gone b", "returned 0"} <= set(lines), lines
    assert "log reloaded" not in lines


@pytest.mark.parametrize("by_kernel", [True, False])
def test_no_child_outlives_a_killed_supervisor(start, by_kernel):
    code = f"""
    if not {by_kernel}:
        supervise._ask_for_death_signal = lambda: False
    def loop(ctx):
        async def main():
            done = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
            say("up", ctx.name, os.getpid())
            ctx.ready()
            await done.wait()
            say("gone", ctx.name)
        import uvloop
        uvloop.run(main())
    supervisor = Supervisor([Child('a', steady), Child('uv', loop), Child('starting', lambda ctx: time.sleep(1000)),
                             Child('deaf', lambda ctx: steady(ctx, deaf=True), grace_s=0.2)], backoff=FAST)
    """
    one = start(code)
    first, *_ = one.until_all("up a", "up uv", "up deaf")
    os.kill(int(first[2]), signal.SIGKILL)  # one that was restarted holds no more than the others
    one.until("up a")
    one.signal(signal.SIGKILL)
    lines = one.rest()  # ends only when all of them are gone
    assert {"gone a", "gone uv", "term deaf"} <= set(lines)


def test_the_parent_gone_helper_works_in_a_child(start):
    code = """
    def run(ctx):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        supervise.parent_gone(ctx.parent_fd, lambda: (say("alone"), os._exit(0)))
        say("up")
        time.sleep(1000)
    supervisor = Supervisor([Child('a', run, grace_s=1000)])
    """
    one = start(code)
    one.until("up")
    one.signal(signal.SIGKILL)
    assert one.rest()[-1] == "alone"


def test_a_child_inherits_only_its_own_pipes(start):
    code = """
    def run(ctx):
        say("up", ctx.name, sum(1 for fd in range(256) if fd > 2 and is_open(fd)))
        ctx.ready()
        signal.pause()
    def is_open(fd):
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True
    supervisor = Supervisor([Child(name, run) for name in 'abc'], backoff=FAST)
    """
    one = start(code)
    counts = [words[2] for words in one.until_all("up a", "up b", "up c")]
    assert counts == ["2", "2", "2"]  # the parent's pipe and the one to say ready
    one.signal(signal.SIGTERM)
    one.rest()


def test_reload_is_validated_then_signalled_to_those_that_want_it(start):
    code = """
    verdicts = [True, False, ValueError("bad file"), True]
    generation = 0
    def reload():
        global generation
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        generation += verdict
        return verdict
    def run(ctx):
        say("generation", generation)
        steady(ctx)
    supervisor = Supervisor([Child('a', run, reload=True), Child('b', steady)], on_reload=reload, backoff=FAST)
    """
    one = start(code)
    up, _ = one.until_all("up a", "up b")
    one.signal(signal.SIGHUP)
    one.until_all("log reloaded", "hup a")
    one.signal(signal.SIGHUP)
    one.until("log reload refused")
    one.signal(signal.SIGHUP)
    one.until("log reload failed")
    one.signal(signal.SIGHUP)
    one.until_all("log reloaded", "hup a")
    assert not any(line == "hup b" for line in one.lines)
    os.kill(int(up[2]), signal.SIGKILL)
    assert one.until("generation")[1] == "2"  # a restarted child has the configuration of today
    one.signal(signal.SIGTERM)
    assert one.rest().count("hup a") == 2


def test_a_reload_during_the_start_waits_until_the_child_is_ready(start):
    code = """
    def run(ctx):
        say("starting")
        sys.stdin.readline()
        steady(ctx)
    supervisor = Supervisor([Child('a', run, reload=True)], on_reload=lambda: True)
    """
    read, write = os.pipe()
    one = start(code, stdin=read)
    os.close(read)
    one.until("starting")
    one.signal(signal.SIGHUP)
    one.until("log reloaded")
    os.write(write, b"\n")
    os.close(write)
    one.until("hup a")
    one.signal(signal.SIGTERM)
    assert sum(line == "starting" for line in one.rest()) == 1


def test_on_ready_is_called_once_when_all_are(start):
    code = """
    supervisor = Supervisor([Child('a', steady), Child('b', steady)], on_ready=lambda: say("all ready"), backoff=FAST)
    """
    one = start(code)
    up, _, _ = one.until_all("up a", "up b", "all ready")
    os.kill(int(up[2]), signal.SIGKILL)
    one.until("up a")
    one.signal(signal.SIGTERM)
    assert one.rest().count("all ready") == 1


def test_a_child_that_is_never_ready_is_killed_and_started_again(start):
    code = """
    def run(ctx):
        if ctx.start > 1:
            steady(ctx)
        time.sleep(1000)
    supervisor = Supervisor([Child('a', run, ready_timeout_s=0.2)], backoff=FAST)
    """
    one = start(code)
    assert one.until("up a")[3] == "2"
    assert any("not ready within 0.2 s: killing it" in line for line in one.lines)
    one.signal(signal.SIGTERM)
    assert one.rest()[-1] == "returned 0"


@pytest.mark.parametrize(
    ("child", "code"),
    [
        ("Child('x', lambda ctx: GIVE_UP, group=1)", 78),
        ("Child('x', lambda ctx: 5, restart=False)", 5),
        ("Child('x', lambda ctx: sys.exit('no'), restart=False)", 1),
        ("Child('x', lambda ctx: os.kill(os.getpid(), 9), restart=False)", 137),
        ("Child('x', lambda ctx: None, restart=False)", 0),
    ],
)
def test_an_end_that_no_restart_mends_stops_everything(start, child, code):
    one = start(f"supervisor = Supervisor([Child('a', steady), {child}], backoff=FAST)")
    lines = one.rest()
    assert lines[-1] == f"returned {code}"
    assert any("x (pid" in line and "stopping all" in line for line in lines)
