"""Alarms to a webhook, and levers that were switched: JSON whose `text` is one line, beside its parts.

Slack, Mattermost and the like show that line.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

import msgspec

from trimtab.quality.marks import Mark
from trimtab.slo import Alarm
from trimtab.telemetry.outlet import Dropped, Outlet

_TIMEOUT_S = 10.0
_PAUSES_S = (1.0, 4.0, 15.0)  # before each further try


class Webhook(Outlet[Alarm | Mark]):
    """POSTs each alarm to `url`, again if that fails."""

    name = "the alarm webhook"
    limit = 1000
    batch = 1

    def __init__(self, url: str, dropped: Dropped) -> None:
        super().__init__(dropped)
        self._url = url

    def __call__(self, alarm: Alarm | Mark) -> None:
        """Queue an alarm."""
        self.put([alarm])

    def send(self, items: list[Alarm | Mark]) -> str:
        """Send one; the reason why not, once all tries have failed."""
        (alarm,) = items
        body = msgspec.json.encode(payload(alarm))
        problem = ""
        for pause_s in (0.0, *_PAUSES_S):
            if pause_s and self._closing:
                break
            time.sleep(pause_s)
            request = urllib.request.Request(self._url, body, {"content-type": "application/json"}, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                    return ""
            except urllib.error.HTTPError as error:
                problem = f"it answered {error.code}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error)
        return problem


def payload(alarm: Alarm | Mark) -> dict[str, object]:
    """What is sent."""
    if isinstance(alarm, Mark):
        return {
            "text": alarm.text,
            "state": "on" if alarm.on else "off",
            "route": alarm.route,
            "lever": alarm.lever,
            "at": alarm.at,
            "by": alarm.by,
            "reason": alarm.reason,
            "pairs": alarm.pairs,
            "loss": alarm.loss,
            "interval": None if alarm.lower is None else [alarm.lower, alarm.upper],
        }
    return {
        "text": alarm.text,
        "state": "firing" if alarm.firing else "resolved",
        "severity": alarm.rule.severity,
        "route": alarm.route,
        "at": alarm.at,
        "targets": alarm.objective.slo.name,
        "objective": alarm.objective.share,
        "windows": [alarm.rule.long, alarm.rule.short],
        "burn_rates": alarm.burn_rates,
    }
