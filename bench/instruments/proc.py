"""What /proc says: CPU and memory of a process tree by role, and what everybody else on the machine used."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_ROLES = {"trimtab-ingest": "ingester", "trimtab-superv": "supervisor", "trimtab-engine": "engine"}


def tree(root: int) -> list[int]:
    """`root` and all its living descendants."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def role(pid: int) -> str:
    """`serve`, or what the process says by its name that it is: `ingester`, `supervisor` or `engine`."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "serve"
    return _ROLES.get(name[:14], "serve")


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time that `pids` have used, all their threads included."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def cpu_by_role_s(root: int) -> dict[str, float]:
    """CPU time of the tree under `root`, by role."""
    used: dict[str, float] = {}
    for pid in tree(root):
        name = role(pid)
        used[name] = used.get(name, 0.0) + cpu_s([pid])
    return used


def whole_cpu_s(pids: Iterable[int]) -> float:
    """CPU time of `pids` and of all their ended children."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def everybody() -> list[int]:
    """Every process of the machine. What one that ends has used moves to its parent, so the sum over all only grows."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def stolen_s() -> float:
    """Time that the hypervisor took from this machine's cores since boot."""
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / _TICKS


def memory(root: int) -> list[dict[str, object]]:
    """Each process of the tree: its role, name, and anonymous and resident memory (proportional shares), MB."""
    rows: list[dict[str, object]] = []
    for pid in tree(root):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
            rows.append(
                {
                    "role": role(pid),
                    "name": Path(f"/proc/{pid}/comm").read_text().strip(),
                    "anon_mb": round(kb["Pss_Anon"] * 1024 / 1e6, 1),
                    "pss_mb": round(kb["Pss"] * 1024 / 1e6, 1),
                    "rss_mb": round(kb["Rss"] * 1024 / 1e6, 1),
                }
            )
    return rows


def send(root: int, what: signal.Signals) -> None:
    """Signal the whole tree: parents first (on CONT: last), so that no supervisor sees its children stand still."""
    pids = tree(root)
    for pid in reversed(pids) if what == signal.SIGCONT else pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
