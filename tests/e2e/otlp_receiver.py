"""A real OpenTelemetry receiver (OTLP over HTTP, decoded by OtelTap's Rust core) as a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upstream import wait_until

from ports import free_port

_VALUES = {"stringValue": str, "intValue": int, "doubleValue": float, "boolValue": bool}


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """OTLP's attribute list as a dictionary."""
    return {entry["key"]: _value(entry["value"]) for entry in attributes}


def _value(value: dict[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    return [_value(v) for v in inner["values"]] if kind == "arrayValue" else _VALUES[kind](inner)


class Receiver:
    """Everything it was sent is in `spans` and, the newest state of each metric, in `metrics`."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._out = folder / "received.ndjson"

    @contextlib.contextmanager
    def running(self) -> Iterator[Receiver]:
        with self._out.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "oteltap", "--port", str(self.port)], stdout=out, stderr=out
            )
        try:
            wait_until(self._answers, 20, "the OTLP receiver")
            yield self
        finally:
            process.terminate()
            process.wait(10)

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"{self.endpoint}/v1/traces", data=b"", headers={"content-type": "application/x-protobuf"}
        )
        try:
            return bool(urllib.request.urlopen(request, timeout=5).status == 200)
        except OSError:
            return False

    def _received(self) -> list[dict[str, Any]]:
        lines = self._out.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Spans in order of arrival, `attributes` plain."""
        found = [message for message in self._received() if "spanId" in message]
        return [span | {"attributes": plain(span["attributes"])} for span in found]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The newest message of each metric, `points` with plain `attributes`."""
        newest = {}
        for message in self._received():
            if "spanId" not in message:
                points = (message.get("histogram") or message.get("sum"))["dataPoints"]
                points = [point | {"attributes": plain(point["attributes"])} for point in points]
                newest[message["name"]] = message | {"points": points}
        return newest

    def spans_of(self, request_id: str, count: int, timeout_s: float = 15.0) -> list[dict[str, Any]]:
        """The spans of one request, its own first, once there are `count`."""

        def found() -> list[dict[str, Any]]:
            spans = self.spans
            own = [s for s in spans if s["attributes"].get("trimtab.request.id") == request_id]
            return own + [s for s in spans if own and s["parentSpanId"] == own[0]["spanId"]]

        wait_until(lambda: len(found()) >= count, timeout_s, f"{count} spans of {request_id}")
        return found()
