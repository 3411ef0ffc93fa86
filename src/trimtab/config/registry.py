"""Finds an engine or a lever by its kind: a module of ours by file name, or a third party's by entry point.

Nothing is imported before it is asked for. A module counts if it exports `Config` (a frozen Struct) and `build`.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from trimtab.errors import ConfigError

_KIND = re.compile(r"[a-z][a-z0-9_]*")


def find(group: str, kind: str) -> ModuleType:
    """The module of a kind; `group` is "engines" or "levers", and "trimtab.<group>" the entry-point group.

    A module of ours wins over an entry point of the same name. Side effect: imports the module. Raises ConfigError,
    with one problem, if there is none, it cannot be imported, or it lacks `Config` or `build`.
    """
    if not _KIND.fullmatch(kind):
        raise ConfigError([f"unknown kind {kind!r}; {_ways_out(group, kind)}"])
    module = _built_in(group, kind) or _third_party(group, kind)
    if module is None:
        raise ConfigError([f"unknown kind {kind!r}; {_ways_out(group, kind)}"])
    if not _is_complete(module):
        raise ConfigError([f"{module.__name__} is not one of the {group}: it must export `Config` and `build`"])
    return module


def shared_settings(lever: str) -> set[str]:
    """The settings of a lever that hold for the whole gateway from its start on, such as the size of a store.

    They are those that its module leaves out of its `PER_ROUTE`; a module without one lets every route differ in all.
    """
    module = find("levers", lever)
    per_route = getattr(module, "PER_ROUTE", None)
    return set() if per_route is None else set(module.Config.__struct_fields__) - set(per_route)


def built_in(group: str) -> list[str]:
    """The kinds that come with Trimtab and can be loaded here, by name. Side effect: imports their modules."""
    import pkgutil

    package = importlib.import_module(f"trimtab.{group}")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if _loads(group, info.name))


def known(group: str) -> list[str]:
    """All kinds: ours and those of installed third parties (which are not imported)."""
    from importlib.metadata import entry_points

    return sorted({*built_in(group), *(point.name for point in entry_points(group=f"trimtab.{group}"))})


def changing_answers() -> list[str]:
    """The levers by which users may get other answers; their modules export `CHANGES_ANSWERS` and `in_use`."""
    return [kind for kind in known("levers") if getattr(find("levers", kind), "CHANGES_ANSWERS", False)]


def _built_in(group: str, kind: str) -> ModuleType | None:
    name = f"trimtab.{group}.{kind}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise _cannot_load(group, kind, error) from error
    except ImportError as error:
        raise _cannot_load(group, kind, error) from error


def _third_party(group: str, kind: str) -> ModuleType | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=f"trimtab.{group}", name=kind):
        try:
            return importlib.import_module(point.module)
        except ImportError as error:
            raise _cannot_load(group, kind, error) from error
    return None


def _cannot_load(group: str, kind: str, error: ImportError) -> ConfigError:
    return ConfigError([f"kind {kind!r} of {group} cannot be loaded ({error}); install what it needs"])


def _loads(group: str, kind: str) -> bool:
    try:
        module = _built_in(group, kind)
    except ConfigError:  # whoever names it in the configuration is told why
        return False
    return module is not None and _is_complete(module)


def _is_complete(module: ModuleType) -> bool:
    return hasattr(module, "Config") and hasattr(module, "build")


def _ways_out(group: str, kind: str) -> str:
    from trimtab.config.problems import choices

    return choices(kind, known(group))
