"""What a lever says of the store that it shares with other gateways: a URL, or the variable that holds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.config.problems import Path, Problems
from trimtab.errors import BadRequest

Secret = Callable[[str, Mapping[str, str], str], str]
"""Why a variable cannot hold a secret, or "": the variable, the environment, the key that names it."""


def check_store(path: Path, settings: Any, env: Mapping[str, str], problems: Problems, secret: Secret) -> None:
    """Report what is wrong with `store`, `url` and `url_env`, of whatever lever has them. No message shows a secret."""
    store, url, variable = (getattr(settings, name, "") for name in ("store", "url", "url_env"))
    if store != "valkey":
        for name in ("url", "url_env"):
            if getattr(settings, name, ""):
                problems.add((*path, name), 'has no effect on this store; take it out, or set store = "valkey"')
        return
    if bool(url) == bool(variable):
        example = 'url = "valkey://127.0.0.1:6379/0", or url_env = "TRIMTAB_VALKEY_URL" for one with a password'
        problem = "give one of url and url_env, not both" if url else "needs the server's address"
        problems.add((*path, "url" if url else "store"), f"{problem}: {example}")
        return
    from trimtab.stores._valkey_link import missing_package, parse_url

    name = "url" if url else "url_env"
    message = "" if url else secret(variable, env, "url_env")
    if not message:
        try:
            address = parse_url(url or env[variable].strip())
            if url and address.password:
                message = (
                    'holds a password; take it out, and put the URL into a variable: url_env = "TRIMTAB_VALKEY_URL"'
                )
        except BadRequest as error:
            message = error.message if url else f"the environment variable {variable} {error.message}"
    if message:
        problems.add((*path, name), message)
    elif missing := missing_package():
        problems.add((*path, "store"), missing)
