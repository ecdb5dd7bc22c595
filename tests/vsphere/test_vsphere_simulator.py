"""The simulator fixture is what its users rely on."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_plain import Plain, outcome
from vsphere_simulator import HOST, Simulator, session
from vsphere_waiting import PATIENCE_S


def names(simulator: Simulator, kind: type) -> set[str]:
    with simulator.connected() as instance:
        content = instance.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
        return {one.name for one in view.view}


def test_inventory_is_as_promised(fresh_simulator: Simulator) -> None:
    assert names(fresh_simulator, vim.Datastore) == {"LocalDS_0", "LocalDS_1"}
    assert names(fresh_simulator, vim.HostSystem) == {"DC0_C0_H0", "DC0_C0_H1"}
    assert {"VM Network", "DC0_DVPG0", "DC0_DVPG1"} <= names(fresh_simulator, vim.Network)
    assert not names(fresh_simulator, vim.VirtualMachine)
    assert fresh_simulator.datastore_dir("LocalDS_1").is_dir()


def test_crashed_simulator_comes_back_at_its_port(fresh_simulator: Simulator) -> None:
    port, files = fresh_simulator.port, fresh_simulator.datastore_dir()
    fresh_simulator.kill()
    assert not fresh_simulator.running
    assert not files.exists()
    fresh_simulator.restart()
    assert fresh_simulator.port == port
    assert names(fresh_simulator, vim.ClusterComputeResource) == {"DC0_C0"}


def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    simulator.close()
    assert not list((tmp_path / "files").iterdir())


def test_strangers_are_refused(simulator: Simulator) -> None:
    with pytest.raises(vim.fault.InvalidLogin), session(simulator.port, simulator.certificate, "else", "wrong"):
        pass


def test_certificate_is_its_own(simulator: Simulator) -> None:
    shown = ssl.get_server_certificate((HOST, simulator.port))
    assert ssl.PEM_cert_to_DER_cert(shown) == ssl.PEM_cert_to_DER_cert(simulator.certificate.certificate.read_text())


def test_machines_may_be_made_while_somebody_waits(fresh_simulator: Simulator) -> None:
    """The library's own views can stop the simulator for good then."""
    with fresh_simulator.connected() as watching, fresh_simulator.connected() as instance:
        plain = Plain(instance)
        made: set[str] = set()
        seen: set[str] = set()
        complete = threading.Event()
        watcher = threading.Thread(target=watch, args=(Plain(watching), seen, complete))
        watcher.start()
        try:
            for batch in range(10):
                tasks = [plain.create(f"m{batch}-{number}") for number in range(4)]
                made |= {outcome(task)._moId for task in tasks}
            deadline = time.monotonic() + PATIENCE_S
            while seen != made and time.monotonic() < deadline:
                time.sleep(0.01)
            assert seen == made
        finally:
            complete.set()
            watcher.join()


def watch(plain: Plain, seen: set[str], complete: threading.Event) -> None:
    """Notes machines as they appear. Their names may not be among what is told: one may be seen half made."""
    collector, of = plain.content.propertyCollector, vmodl.query.PropertyCollector
    view = plain.content.viewManager.CreateContainerView(plain.folder, [vim.VirtualMachine], True)
    to_members = of.TraversalSpec(path="view", type=type(view), skip=False)
    spec = of.FilterSpec(
        propSet=[of.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
        objectSet=[of.ObjectSpec(obj=view, skip=True, selectSet=[to_members])],
    )
    collector.CreateFilter(spec, True)
    version = ""
    while not complete.is_set():
        update: Any = collector.WaitForUpdatesEx(version, of.WaitOptions(maxWaitSeconds=1))
        if update is not None:
            version = update.version
            seen |= {one.obj._moId for each in update.filterSet for one in each.objectSet}
