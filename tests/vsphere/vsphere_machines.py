"""Machines of the driver's on the simulator, without the rest of a driver: a session through a front, and VMs."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from pyVmomi import vim
from vsphere_front import Front
from vsphere_plain import Plain, outcome
from vsphere_simulator import HOST

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere import config_spec, extra_config
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.extra_config import Boot, Kept
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.machine import VsphereMachine, first_uuid
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.virtual_machines import VirtualMachines
from portlayer.errors import ConflictError

BOOT = Boot("[LocalDS_0] guest.iso", "telnet://127.0.0.1:2377")
IMAGE, EMPTY = "[LocalDS_0] image.vmdk", "[LocalDS_0] empty.vmdk"
# Short: nothing is to be gained by waiting for a simulator.
DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


def session_through(front: Front) -> Session:
    simulator = front.simulator
    endpoint = Endpoint(HOST, front.port, thumbprint=simulator.thumbprint)
    return Session(endpoint, Credentials(simulator.user, simulator.password), delays_s=DELAYS_S)


class NoLines:
    """Nobody dials in: there are no guests."""

    async def connect(self, vc_uuid: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise AssertionError("no guest is there to dial in")


class Around:
    """What a machine is given by its driver."""

    def __init__(self, session: Session, vms: VirtualMachines) -> None:
        self.session = session
        self.vms = vms
        self.lines = NoLines()

    async def boot(self) -> Boot:
        return BOOT

    async def wait_off(self, vm: Any) -> None:
        raise AssertionError("nobody waits for an end here")

    def image_path(self, name: str) -> str:
        return IMAGE

    def described(self, spec: MachineSpec) -> vim.vm.ConfigSpec:
        return vim.vm.ConfigSpec(annotation="a container")

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        raise AssertionError("nothing is left for later here")

    async def power_on(self, vm: Any, name: str) -> None:
        try:
            await self.session.run(vm.PowerOnVM_Task, what=f"powering on the VM {name}")
        except ConflictError as error:  # on by the same call before, of which the answer was lost
            if not caused_by(error, vim.fault.InvalidPowerState):
                raise


class Bench:
    """A session of the driver's through the front, and, past it, all that a test wants to see of the truth."""

    def __init__(self, front: Front, plain: Plain, around: Around, directory: Path) -> None:
        self.front = front
        self.plain = plain
        self.around = around
        self._directory = directory
        self._token = uuid.uuid4().hex

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, front: Front, directory: Path) -> AsyncIterator[Bench]:
        with front.simulator.connected() as instance:
            plain = Plain(instance)
            _prepare(plain)
            session = session_through(front)
            await session.open()
            folder = await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0/vm", what="looking")
            vms = VirtualMachines(folder, lambda vm, before, now: None)
            await session.updates.add(vms)
            bench = cls(front, plain, Around(session, vms), directory)
            try:
                yield bench
            finally:
                front.clear()
                await session.close()
                for name in plain.machines():
                    plain.remove(name)

    def machine(self) -> VsphereMachine:
        """One that was made without trouble, powered off, with the record b"first"."""
        identity = (uuid.uuid4().hex * 2)[:64]
        spec = MachineSpec(identity, "web", 64 << 20, 1, "image", 1 << 30)
        name = f"web-{identity[:12]}"
        own = first_uuid(identity)
        disks = config_spec.Disks(IMAGE, EMPTY, f"[LocalDS_0] {name}-writable.vmdk")
        hardware = config_spec.Hardware("LocalDS_0", BOOT, self._token, None)
        values = extra_config.fixed(spec, self._token) | extra_config.boot(BOOT) | extra_config.record(b"first")
        config = self.around.described(spec)
        config_spec.describe(config, spec, name, hardware, disks, own, values)
        vm = outcome(self.plain.folder.CreateVM_Task(config, self.plain.pool))
        own_vm = vim.VirtualMachine(vm._moId, self.around.session.content.rootFolder._stub)
        return VsphereMachine(self.around, own_vm, name, own, Kept(spec, self._token, BOOT), self._directory)

    def truth(self, machine: VsphereMachine) -> Any:
        """The VM, past the front; None when there is none of that id."""
        search = self.plain.content.searchIndex
        return search.FindByUuid(None, machine.vc_uuid, True, True)

    def files(self) -> set[str]:
        """Everything on the datastore, by paths."""
        root = self.front.simulator.datastore_dir()
        return {str(path.relative_to(root)) for path in root.rglob("*")}


def _prepare(plain: Plain) -> None:
    """The disks that those of machines are children of."""
    manager = plain.content.virtualDiskManager
    datacenter = plain.content.rootFolder.childEntity[0]
    for path in (IMAGE, EMPTY):
        spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=1 << 10
        )
        with contextlib.suppress(vim.fault.FileAlreadyExists):
            outcome(manager.CreateVirtualDisk_Task(path, datacenter, spec))
