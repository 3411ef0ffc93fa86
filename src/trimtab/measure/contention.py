"""How much of the processors other programs take while we measure; timings beside a busy neighbour prove little."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

NOISY: Final = 0.1  # others' part of the processors above which a run is not to be trusted
_IDLE_FIELDS: Final = (4, 5)  # idle and iowait, in a cpu line of /proc/stat split at white space
_LAST_FIELD: Final = 9  # up to steal: the guest fields after it are counted in user already
_PACE_BLOCKS: Final = 200
_PACE_COPIES: Final = 24
_BEYOND_CACHES: Final = 64 << 20  # bytes
_PARENT, _SESSION, _UTIME, _STIME = 1, 3, 11, 12  # in /proc/PID/stat, counted from the field after the name


class _Process(NamedTuple):
    name: str
    parent: int
    session: int
    cpu_s: float


class Contention:
    """From its making to `share`: what others used of the processors that we may use. Linux only, else None.

    Ours are this process and those in the session of `session_pid`, with what they started.
    """

    def __init__(self, session_pid: int) -> None:
        self._session_pid = session_pid
        self._began = time.monotonic()
        self._all_s = _busy_s()
        self._ours_s = self._own_s()

    def share(self) -> float | None:
        """Others' part of the processors' time, from 0 to 1."""
        all_s = _busy_s()
        if all_s is None or self._all_s is None:
            return None
        room_s = (time.monotonic() - self._began) * len(_cpus())
        others_s = (all_s - self._all_s) - (self._own_s() - self._ours_s)
        return min(1.0, max(0.0, others_s / room_s)) if room_s > 0 else None

    def _own_s(self) -> float:
        processes = _processes()
        ours = _with_descendants(self._session_pid, processes) | ({os.getpid()} & processes.keys())
        return sum(processes[pid].cpu_s for pid in ours)


def cpu_s(session_pid: int) -> dict[str, float]:
    """Seconds of processor time that the processes of a session and what they started have used so far, by name.

    Linux only, else empty.
    """
    processes = _processes()
    used: dict[str, float] = {}
    for pid in _with_descendants(session_pid, processes):
        one = processes[pid]
        used[one.name] = used.get(one.name, 0.0) + one.cpu_s
    return used


def pace_s() -> float:
    """Seconds of processor time that a fixed piece of work takes: how fast the machine is at this moment.

    Half is computed and half is copied in memory, which an engine waits for as much, and which neighbours on the same
    host slow down more than they do the processor.
    """
    block, large = bytes(1 << 20), bytearray(_BEYOND_CACHES)
    target = memoryview(bytearray(large))
    began = time.process_time()
    for _ in range(_PACE_BLOCKS):
        hashlib.sha256(block)
    for _ in range(_PACE_COPIES):
        target[:] = large
    return time.process_time() - began


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_s() -> float | None:
    """Seconds that our processors were busy since the machine started."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{number}" for number in _cpus()}
    ticks = 0
    for fields in (line.split() for line in lines):
        if fields and fields[0] in names:
            counted = range(1, min(len(fields), _LAST_FIELD))
            ticks += sum(int(fields[n]) for n in counted if n not in _IDLE_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> dict[int, _Process]:
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = file.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        pid, _, name = before.partition(" (")
        fields = after.split()
        ticks = int(fields[_UTIME]) + int(fields[_STIME])
        found[int(pid)] = _Process(name, int(fields[_PARENT]), int(fields[_SESSION]), ticks / os.sysconf("SC_CLK_TCK"))
    return found


def _with_descendants(session_pid: int, processes: Mapping[int, _Process]) -> set[int]:
    """A session's processes and what they started: an engine may run in a session of its own."""
    ours = more = {pid for pid, one in processes.items() if one.session == session_pid}
    while more:
        more = {pid for pid, one in processes.items() if one.parent in more} - ours
        ours |= more
    return ours
