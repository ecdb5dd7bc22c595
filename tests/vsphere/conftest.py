"""What the driver's tests share: one simulator for each worker. A test that wants faults asks for a front before it."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
import vsphere_vsan
from vsphere_dialling import running
from vsphere_front import Front
from vsphere_plain import Plain, outcome
from vsphere_sessions import through
from vsphere_simulator import Simulator
from vsphere_site import Site
from vsphere_stores import Kind, Store
from vsphere_strict import strict

from portlayer.drivers.vsphere import cloning, session
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.serial import Concentrator

# What stands for the rest in make test-fast: the driver's plain life, the session, the simulator as such.
_QUICK = {"test_vsphere_driver", "test_vsphere_session", "test_vsphere_simulator"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What speaks to the simulator is slow, as a whole."""
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        if asked & {"_one_simulator", "_one_with_vsan", "fresh_simulator", "store"} and item.path.stem not in _QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _nothing_that_vcenter_would_refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test's driver makes a call that only the simulator takes."""
    faults: list[str] = []
    stub = session.Stub
    monkeypatch.setattr(session, "Stub", lambda **options: strict(stub(**options), faults))
    yield
    assert not faults


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Set: the vCenter of a test, which is `held`, goes on."""
    gate = threading.Event()
    yield gate
    gate.set()


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
def plain_simulator(_one_simulator: Simulator) -> Simulator:
    """vcsim with whatever the tests before left in its inventory; started anew when it has crashed."""
    if not _one_simulator.running:
        _one_simulator.restart()
    return _one_simulator


@pytest.fixture
def simulator(plain_simulator: Simulator) -> Simulator:
    """The one that a test's front stands before."""
    return plain_simulator


@pytest.fixture(scope="session")
def _one_with_vsan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("vcsim-vsan"), "-host", "3")
    try:
        vsphere_vsan.enable(simulator)
        yield simulator
    finally:
        simulator.close()


@pytest.fixture
def vsan_simulator(_one_with_vsan: Simulator) -> Simulator:
    """As `plain_simulator`, with a datastore of vSAN."""
    if not _one_with_vsan.running:
        _one_with_vsan.restart()
        vsphere_vsan.enable(_one_with_vsan)
    return _one_with_vsan


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


@pytest.fixture
def site(front: Front, tmp_path: Path) -> Iterator[Site]:
    with front.simulator.connected() as instance:
        site = Site(front, tmp_path, Plain(instance))
        yield site
        site.close()
        front.clear()
        front.settle()
        site.plain.clear()
        if (folder := site.plain.content.searchIndex.FindByInventoryPath(site.path)) is not None:
            outcome(folder.Destroy_Task())
        shutil.rmtree(front.simulator.datastore_dir() / site.folder)


@pytest.fixture
async def store(kind: Kind, front: Front, tmp_path: Path) -> AsyncIterator[Store]:
    """A datastore of the kind that the test, or its module, says by a fixture `kind`."""
    async with through(front) as session:
        store = Store(kind, front.simulator, session, tmp_path)
        yield store
        await store.close()


@pytest.fixture
async def datastore(store: Store) -> AsyncIterator[VsphereDatastore]:
    async with store.opened() as datastore:
        yield datastore
        await store.check()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """2.5 MiB of a file system, so to speak."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(5 << 19))
    return path


@pytest.fixture
def short_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_DIAL_S", 0.05)  # there are no guests to dial in


@pytest.fixture
async def concentrator() -> AsyncIterator[Concentrator]:
    async with running() as made:
        # Fixture and test are tasks of their own.
        watchdog = asyncio.get_running_loop().call_later(60, lambda: [task.cancel() for task in asyncio.all_tasks()])
        yield made
        watchdog.cancel()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()
