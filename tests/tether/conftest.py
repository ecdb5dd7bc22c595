"""The agent on this machine, without a VM, driven by the port layer's own client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tether_host import PATIENCE_S, PROGRAM, Agent, MakeAgent


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[MakeAgent]:
    """Starts agents whose image is this machine's root with some changes; afterwards nothing of them is left."""
    if os.geteuid() != 0:
        pytest.skip("the agent makes namespaces and mounts, which needs root")
    agents: list[Agent] = []
    descriptors = len(os.listdir("/proc/self/fd"))

    def make(changes: dict[str, object] | None = None) -> Agent:
        path = tmp_path / f"agent{len(agents)}"
        process = subprocess.Popen(
            [sys.executable, PROGRAM, path, json.dumps(changes or {})], stdout=subprocess.PIPE, close_fds=True
        )
        agents.append(Agent(process, path))
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        return agents[-1]

    yield make
    for agent in agents:
        tree = psutil.Process(agent.process.pid).children(recursive=True) if agent.process.poll() is None else []
        agent.process.send_signal(signal.SIGTERM)
        status = agent.process.wait(PATIENCE_S)
        assert status in (0, 255 & -signal.SIGKILL, -signal.SIGKILL, -signal.SIGTERM), f"the agent died: {status}"
        assert agent.process.stdout is not None
        agent.process.stdout.close()
        _, alive = psutil.wait_procs(tree, PATIENCE_S)
        assert not alive
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.fixture
def agent(make_agent: MakeAgent) -> Agent:
    return make_agent()
