"""Real processes on real sockets: a scripted upstream, and the gateway in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_process import Gateway, MakeGateway
from upstream import ClosedPort, Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The scripted upstream, one for each test process."""
    with Upstream() as running:
        yield running


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port that refuses connections."""
    with ClosedPort() as port:
        yield port


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeGateway]:
    """Starts gateways: `gateways(config, env, server=...)`; all are stopped when the module is done."""
    running: list[Gateway] = []

    def make(config: str, env: dict[str, str] | None = None, *, server: str = "", ready_s: float = 30.0) -> Gateway:
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), config, env, server=server)
        running.append(gateway)
        return gateway.start(ready_s)

    yield make
    problems = []
    for gateway in running:
        try:
            gateway.stop()
        except AssertionError as problem:
            problems.append(str(problem))
    assert not problems, "\n".join(problems)
