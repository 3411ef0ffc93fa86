"""Writes the suites that Trimtab ships: `python tools/make_suites.py`. The same every time; nothing is downloaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from suites import basics, small_model

SUITES = {"basics": basics, "small-model": small_model}
FOLDER = Path(__file__).parents[1] / "src" / "trimtab" / "evals" / "suites"


def main() -> None:
    """Write each suite's folder anew."""
    for name, suite in SUITES.items():
        write(FOLDER / name, f"# Made by tools/make_suites.py\n{suite.HEAD}{suite.STRATA}", suite.strata())


def write(folder: Path, head: str, strata: Iterable[tuple[str, list[dict[str, Any]]]]) -> None:
    """Write a suite's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.toml").write_text(head)
    for stratum, rows in strata:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{stratum}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
