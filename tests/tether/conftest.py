"""The agent on this machine, without a VM, driven by the port layer's own client."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tether_host import PATIENCE_S, Agent, MakeAgent, open_files
from tether_nursery import Nursery


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    if os.geteuid() != 0:
        pytest.skip("the agent makes namespaces and mounts, which needs root")
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def make_agent(_nursery: Nursery, tmp_path: Path) -> Iterator[MakeAgent]:
    """Starts agents whose image is this machine's root with some changes; afterwards nothing of them is left."""
    agents: list[Agent] = []
    before = open_files()

    def make(changes: dict[str, object] | None = None, *, hand_over_s: float | None = None) -> Agent:
        path = tmp_path / f"agent{len(agents)}"
        agents.append(Agent(_nursery.start(path, changes or {}, hand_over_s), path))
        return agents[-1]

    yield make
    for agent in agents:
        tree = psutil.Process(agent.process.pid).children(recursive=True) if agent.process.runs else []
        agent.process.send_signal(signal.SIGTERM)
        status = agent.process.wait(PATIENCE_S)
        assert status in (0, 255 & -signal.SIGKILL, -signal.SIGKILL, -signal.SIGTERM), f"the agent died: {status}"
        _, alive = psutil.wait_procs(tree, PATIENCE_S)
        assert not alive
    assert not open_files() - before


@pytest.fixture
def agent(make_agent: MakeAgent) -> Agent:
    return make_agent()
