"""What the lab's tests share. QEMU is started only by tests marked vm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "vsphere"))

from lab_estate import Estate
from vsphere_simulator import Simulator


@pytest.fixture(scope="module")
def _one_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("vcsim"))
    try:
        yield simulator
    finally:
        simulator.close()


@pytest.fixture
def estate(_one_simulator: Simulator) -> Iterator[Estate]:
    """vcsim without VMs, and with a few files in its first datastore."""
    if not _one_simulator.running:
        _one_simulator.restart()
    with _one_simulator.connected() as instance:
        estate = Estate(_one_simulator, instance)
        try:
            yield estate
        finally:
            estate.clear()
