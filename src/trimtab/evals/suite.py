"""Finds a suite's files and answers with a whole suite, or with every mistake in them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from trimtab.config.problems import choices
from trimtab.errors import ConfigError
from trimtab.evals.item import Item, Suite
from trimtab.evals.reading import read

__all__ = ["FILE", "Item", "Suite", "load", "shipped"]

FILE: Final = "suite.toml"


def load(where: str | Path) -> Suite:
    """The suite in a folder (or named by its suite.toml), or a shipped one by its name.

    Side effects: reads the files. Raises ConfigError with every mistake at once, as `FILE:LINE: key: what is wrong; the
    way out`.
    """
    suite, problems = read(_locate(where))
    if suite is None:
        raise ConfigError([str(problem) for problem in problems])
    return suite


def shipped() -> list[str]:
    """The names of the suites that come with Trimtab."""
    return sorted(folder.name for folder in _shipped_folder().iterdir() if (folder / FILE).is_file())


def _shipped_folder() -> Path:
    return Path(str(files("trimtab.evals"))) / "suites"


def _locate(where: str | Path) -> Path:
    path = Path(where).expanduser()
    if path.is_dir():
        return path / FILE
    if path.is_file():
        return path
    if isinstance(where, str) and where in shipped():
        return _shipped_folder() / where / FILE
    raise ConfigError(
        [f"{where}: there is no such folder, {FILE} or shipped suite; {choices(str(where), shipped())}"]
    )  # fmt: skip
