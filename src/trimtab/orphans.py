"""Children that do not outlive a parent that was killed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def death_signal() -> Callable[[], bool]:
    """What a child calls to be sent SIGTERM by Linux once its parent is dead; it says whether that is arranged.

    Get it in the parent to call it between fork and exec, where nothing may be loaded. A parent that died before the
    call goes unnoticed: compare `os.getppid()` afterwards.
    """
    if not sys.platform.startswith("linux"):
        return lambda: False
    import ctypes

    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return lambda: False
    return lambda: bool(prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0)
