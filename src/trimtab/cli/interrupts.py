"""Long work that a signal ends in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final

ENDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, SIGTERM, a closed terminal


async def until_signal(work: Coroutine[Any, Any, None], signals: tuple[signal.Signals, ...] = ENDED) -> bool:
    """Run to the end, or until one of the signals cancels it; returns whether it came to its end."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return True
