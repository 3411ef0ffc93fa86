"""What the log hears of a Valkey server: one line when it fails, one when it is back, no more."""

from __future__ import annotations

import logging
from typing import Final

from trimtab.ports import Clock

_log = logging.getLogger("trimtab.stores.valkey")

_EVERY_S: Final = 60.0


class Reports:
    """The lines about one server, named `where` in them."""

    def __init__(self, where: str, clock: Clock) -> None:
        self._where = where
        self._clock = clock
        self._down = self._refused = False
        self._odd_at = -_EVERY_S

    def down(self, reason: str) -> None:
        """Requests go on without it."""
        if not self._down:
            self._down = True
            _log.warning("answer cache %s: %s; requests go on without it", self._where, reason)

    def up(self) -> None:
        """It answers; a word only if it did not."""
        if self._down:
            self._down = False
            _log.warning("answer cache %s is back", self._where)

    def refused(self, reason: str) -> None:
        """It takes no answers; "": it does again."""
        if reason:
            self._refused |= self.odd(f"{reason}; what is there is still served")
        elif self._refused:
            self._refused = False
            _log.warning("answer cache %s takes answers again", self._where)

    def odd(self, what: str) -> bool:
        """Something else, unless there was a line of the kind within a minute; whether it was said."""
        now = self._clock.mono()
        if now - self._odd_at < _EVERY_S:
            return False
        self._odd_at = now
        _log.warning("answer cache %s %s", self._where, what)
        return True
