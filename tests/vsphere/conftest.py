"""What the driver's tests share: one simulator for each worker. A test that wants faults asks for a front before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vsphere_front import Front
from vsphere_simulator import Simulator
from vsphere_strict import strict

from portlayer.drivers.vsphere import session


@pytest.fixture(autouse=True)
def _nothing_that_vcenter_would_refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test's driver makes a call that only the simulator takes."""
    faults: list[str] = []
    connect = session.SmartStubAdapter
    monkeypatch.setattr(session, "SmartStubAdapter", lambda *args, **options: strict(connect(*args, **options), faults))
    yield
    assert not faults


@pytest.fixture(scope="session")
def _one_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    directory = tmp_path_factory.mktemp("vcsim")
    simulator = Simulator(directory)
    try:
        yield simulator
    finally:
        simulator.close()
    assert not simulator.running
    assert not list((directory / "files").iterdir())


@pytest.fixture
def simulator(_one_simulator: Simulator) -> Simulator:
    """vcsim with whatever the tests before left in its inventory; started anew when it has crashed."""
    if not _one_simulator.running:
        _one_simulator.restart()
    return _one_simulator


@pytest.fixture
def fresh_simulator(tmp_path: Path) -> Iterator[Simulator]:
    """vcsim for one test alone, with an empty inventory."""
    directory = tmp_path / "vcsim"
    directory.mkdir()
    simulator = Simulator(directory)
    try:
        yield simulator
    finally:
        simulator.close()


@pytest.fixture
def front(simulator: Simulator) -> Iterator[Front]:
    """A front before the simulator, without trouble yet."""
    with Front(simulator).open() as front:
        yield front
