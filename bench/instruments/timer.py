"""A one-shot timer with nanosecond resolution for an event loop (uvloop's own timers round to a millisecond)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = 0o4000
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """Calls `fire()` once at each time given to `at_ns` (monotonic clock); a new time replaces the one before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[], None]) -> None:
        self._fire = fire
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed: the instruments need Linux")
        self._spec = _Itimerspec()
        self._ref = ctypes.byref(self._spec)
        loop.add_reader(self._fd, self._ready)

    def at_ns(self, when_ns: int) -> None:
        """Fire at `when_ns`; a time that has passed fires at once."""
        value = self._spec.it_value
        value.tv_sec, value.tv_nsec = divmod(max(when_ns, 1), 1_000_000_000)
        _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._ref, None)

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            self._fire()


def now_ns() -> int:
    """The clock that both instruments share (one machine, one CLOCK_MONOTONIC)."""
    return time.monotonic_ns()
