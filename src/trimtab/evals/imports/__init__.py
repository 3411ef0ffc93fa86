"""Suites out of other tools' files: promptfoo configurations, Inspect logs, lm-eval samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.evals.imports import inspect_log, lm_eval, promptfoo
from trimtab.evals.imports.draft import Draft, Imported

__all__ = ["Imported", "import_file", "save"]

_KINDS = "a promptfoo configuration (.yaml, .yml, .json), an Inspect log (.json), or lm-eval samples (.jsonl)"


def import_file(path: str | Path) -> Imported:
    """The files of a suite made of another tool's file, and a line for each thing in it that could not be taken over.

    Which tool wrote it is seen by the file's end and content. Side effects: reads the file, and the prompts that it
    names. Raises ConfigError if the file cannot be read, is of another kind, or leaves no item at all.
    """
    path = Path(path).expanduser()
    draft = _draft(path, _text(path))
    if not draft.rows:
        raise ConfigError([f"{path}: nothing in it can be imported", *(f"{path}: {line}" for line in draft.left_out)])
    return draft.imported()


def save(imported: Imported, folder: Path) -> None:
    """Write the files into a folder, which is made. Raises ConfigError if one is there already or cannot be written."""
    if there := [name for name in imported.files if (folder / name).exists()]:
        raise ConfigError([f"{folder / name}: is there already; name another folder" for name in there])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in imported.files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be written: {error.strerror}"]) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; correct the path"]) from error
    except UnicodeDecodeError as error:
        way_out = "; `inspect log dump FILE` writes it as JSON" if path.suffix == ".eval" else f"; give {_KINDS}"
        raise ConfigError([f"{path}: is no text{way_out}"]) from error


def _draft(path: Path, text: str) -> Draft:
    if path.suffix in (".yaml", ".yml"):
        return promptfoo.read(_yaml(path, text), path)
    if path.suffix == ".jsonl":
        return lm_eval.read(text, path)
    if path.suffix == ".json":
        document = _json(path, text)
        if isinstance(document, dict) and isinstance(document.get("eval"), dict):
            return inspect_log.read(document, path)
        if isinstance(document, dict) and "tests" in document:
            return promptfoo.read(document, path)
    raise ConfigError([f"{path}: is of no kind that can be imported; give {_KINDS}"])


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: is no JSON: {error}"]) from error


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError([f"{path}: reading YAML needs the package pyyaml: pip install pyyaml"]) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"{path}: is no YAML: {' '.join(str(error).split())}"]) from error
