"""Instant clone on vSphere: InstantClone_Task from a parent VM that runs, and that has stopped itself where it can.

    template VM   booted, its agent listening, marked as one (vch.template), then frozen by its guest
                  (instantclone.freeze): a VM that stands still is asked for nothing but clones
    clone VM      runs from the instant it is made; vch.clone names its template until it becomes a container's

Both are in the folder of the VCH. A template that is not marked as made, and a clone that is nobody's, are what a crash
left: `open` removes them. A template whose shape, guest image or concentrator is another one is out of date.

Facts (vSphere API, VirtualMachine.InstantClone): vCenter 6.7 and later, relied on from 7.0; the source is powered on;
devices cannot be changed by the call, so disks are added afterwards; a source that is not frozen gets a delta disk for
each clone, which ends after 255.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
import uuid as uuids
from collections.abc import Mapping
from typing import Any

import msgspec
from pyVmomi import vim

from portlayer.drivers.base import Clone, DiskNames, Parent, PowerState, Shape, Template
from portlayer.drivers.shapes import memory_of_template
from portlayer.drivers.uninterrupted import remotely, remotely_made
from portlayer.drivers.vsphere import config_spec, extra_config, once, operations
from portlayer.drivers.vsphere.extra_config import Boot, TemplateFacts
from portlayer.drivers.vsphere.inventory_load import Found
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.surroundings import CloningSurroundings
from portlayer.errors import DriverError, NotFoundError, PortLayerError

CLONE_NAME = "vch-clone-"
TEMPLATE_NAME = "vch-template-"
_FIRST_VERSION = (7, 0)
# A clone that has not dialled in after this long has its serial port plugged in anew; seconds.
_DIAL_S = 2.0
_MIB = 1 << 20
_COMMITTED = "summary.storage.committed"
_HOST_MEMORY = "summary.quickStats.hostMemoryUsage"
_PRIVATE_MEMORY = "summary.quickStats.privateMemory"
_UUID = "config.instanceUuid"
_log = logging.getLogger(__name__)


class _Guest:
    """A VM that is no container's: what VsphereClone and VsphereParent have in common."""

    def __init__(self, around: CloningSurroundings, vm: Any, name: str, uuid: str, token: str, shape: Shape) -> None:
        self._around = around
        self._shape = shape
        self.vm = vm
        self.name = name
        self.uuid = uuid
        self.token = token
        self._kept = False

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def disk_names(self) -> DiskNames:
        return self._around.disk_names

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._around.lines.connect(self.uuid)

    async def wait_off(self) -> None:
        await self._around.wait_off(self.vm)

    async def attach_practice_disks(self) -> None:
        """None: nothing is rehearsed here."""

    async def detach_practice_disks(self) -> None:
        """None: nothing is rehearsed here."""

    async def discard(self) -> None:
        if not self._kept:
            await self.remove()

    async def remove(self) -> None:
        """Removes the VM, whatever it has become. No effect when it is gone."""
        self._kept = True
        self._around.lines.dismiss(self.uuid)
        await remotely(self._around.remove(self.vm, self.name))


class VsphereClone(_Guest):
    """Implements Clone."""

    def __init__(self, *args: Any, took_ns: int) -> None:
        super().__init__(*args)
        self._took_ns = took_ns

    @property
    def phases_ns(self) -> Mapping[str, int]:
        return {"machine": self._took_ns, "restore": 0}  # which InstantClone_Task does in one

    async def resume(self) -> None:
        """It runs since it was made."""

    async def suspend(self) -> None:
        """It goes on: an idle guest costs the host next to nothing, and stopping it here is writing it to disk."""

    async def private_bytes(self) -> int:
        found = await self._around.session.read([self.vm], [_PRIVATE_MEMORY])
        return int(found.get(self.vm, {}).get(_PRIVATE_MEMORY) or 0) * _MIB

    def become_a_containers(self) -> None:
        """From now on it is the caller's: discarding it has no effect."""
        self._kept = True


class VsphereParent(_Guest):
    """Implements Parent."""

    def __init__(self, cloning: VsphereCloning, key: str, *args: Any) -> None:
        super().__init__(cloning.around, *args)
        self._cloning = cloning
        self._key = key

    async def freeze(self, made_in_ns: int) -> Template:
        facts = TemplateFacts(self._key, self.shape.memory_bytes, self.shape.cpus, time.time_ns(), made_in_ns)
        spec = vim.vm.ConfigSpec(extraConfig=config_spec.options(extra_config.template(facts)))
        what = f"keeping the template {self.name}"
        await remotely(self._around.session.run(self.vm.ReconfigVM_Task, spec, what=what))
        self._kept = True
        return await self._cloning.keep(VsphereTemplate(self._cloning, self, facts))


class VsphereTemplate:
    """Implements Template. When it was used last is known in this port layer's life alone."""

    def __init__(self, cloning: VsphereCloning, parent: _Guest, facts: TemplateFacts) -> None:
        self._cloning = cloning
        self._parent = parent
        self._facts = facts
        self._last_used = time.time_ns()
        self.disk_bytes = 0
        self.resident_bytes = 0

    @property
    def id(self) -> str:
        return self._facts.key

    @property
    def shape(self) -> Shape:
        return Shape(self._facts.memory_bytes, self._facts.cpus)

    @property
    def created_unix_ns(self) -> int:
        return self._facts.created_unix_ns

    @property
    def made_in_ns(self) -> int:
        return self._facts.made_in_ns

    @property
    def last_used_unix_ns(self) -> int:
        return self._last_used

    def note_use(self) -> None:
        self._last_used = time.time_ns()

    async def measure(self) -> None:
        """Finds out what it takes."""
        found = await self._cloning.around.session.read([self._parent.vm], [_COMMITTED, _HOST_MEMORY])
        values = found.get(self._parent.vm, {})
        self.disk_bytes = int(values.get(_COMMITTED) or 0)
        self.resident_bytes = int(values.get(_HOST_MEMORY) or 0) * _MIB

    async def clone(self) -> Clone:
        return await remotely_made(self._cloning.clone(self._parent, self), lambda made: made.discard())

    async def remove(self) -> None:
        self._cloning.forget(self)
        await self._parent.remove()


class VsphereCloning:
    """Implements Cloning."""

    # A guest on real hardware has nothing to translate; what a rehearsal would load is there after the first clone.
    rehearsals = (0, 0)
    parents_freeze_themselves = True

    def __init__(self, around: CloningSurroundings) -> None:
        self.around = around
        self._templates: dict[str, VsphereTemplate] = {}

    def shape_for(self, memory_bytes: int, cpus: int) -> Shape | None:
        return Shape(memory_of_template(memory_bytes), cpus)

    async def templates(self) -> list[Template]:
        return list(self._templates.values())

    async def load(self, found: Found, values: Mapping[str, str]) -> None:
        """Takes up a template, or removes it when it is out of date or not whole."""
        vm, name, uuid = found.vm, found.name, found.vc_uuid
        try:
            facts = extra_config.read_template(values)
        except DriverError as error:
            _log.info("the template %s is not whole (%s): removing it", name, error)
            return await self.around.remove(vm, name)
        shape = Shape(facts.memory_bytes, facts.cpus)
        is_on = await operations.power_state(self.around.session, vm, name) is PowerState.RUNNING
        if not is_on or facts.key != self._key(shape, await self.around.boot()):
            _log.info("the template %s is out of date, or off: removing it", name)
            return await self.around.remove(vm, name)
        token = values.get(extra_config.TOKEN, "")
        self.around.lines.admit(uuid, token)
        parent = _Guest(self.around, vm, name, uuid, token, shape)
        await self.keep(VsphereTemplate(self, parent, facts))

    async def keep(self, template: VsphereTemplate) -> Template:
        with contextlib.suppress(PortLayerError):  # sizes are for people
            await template.measure()
        self._templates[template.id] = template
        return template

    def forget(self, template: VsphereTemplate) -> None:
        self._templates.pop(template.id, None)

    async def boot_parent(self, shape: Shape) -> Parent:
        return await remotely_made(self._boot_parent(shape), lambda made: made.discard())

    async def clone(self, parent: _Guest, template: VsphereTemplate) -> Clone:
        """On any failure nothing is left of it."""
        session, began = self.around.session, time.monotonic_ns()
        name = f"{CLONE_NAME}{secrets.token_hex(6)}"
        try:
            vm = await self._fork(parent, template.id, name)
        except PortLayerError:
            await self._check(parent, template)
            raise
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._clear_up, vm, name)
            uuid = str((await operations.properties(session, vm, name, [_UUID])).get(_UUID))
            self.around.lines.admit(uuid, parent.token)
            undo.callback(self.around.lines.dismiss, uuid)
            took_ns = time.monotonic_ns() - began
            clone = VsphereClone(self.around, vm, name, uuid, parent.token, parent.shape, took_ns=took_ns)
            await self._connected(clone)
            undo.pop_all()
            return clone

    async def _clear_up(self, vm: Any, name: str) -> None:
        await operations.quietly(self.around.remove(vm, name), f"removing the VM {name}")

    async def _fork(self, parent: _Guest, template_id: str, name: str) -> Any:
        """The VM of that name that InstantClone_Task makes."""
        session, location = self.around.session, self.around.clone_location()
        devices = await operations.devices(session, parent.vm, parent.name)
        location.deviceChange = config_spec.console_edits(devices, name)
        values = config_spec.options(extra_config.clone(template_id))
        spec = vim.vm.InstantCloneSpec(name=name, location=location, config=values)
        what = f"cloning {parent.name}"

        async def clone_it() -> Any:
            return await session.run(parent.vm.InstantClone_Task, spec, what=what)

        async def find() -> Any:
            find = session.content.searchIndex.FindChild
            return await session.call(find, location.folder, name, what="looking for a clone by its name")

        async def remove(vm: Any) -> None:
            await self.around.remove(vm, name)

        return await once.made(session, clone_it, find, remove, entity=parent.vm, what=what)

    async def _check(self, parent: _Guest, template: VsphereTemplate) -> None:
        """A template that is not on cannot be cloned ever again: somebody switched it off or removed it."""
        try:
            if await operations.power_state(self.around.session, parent.vm, parent.name) is PowerState.RUNNING:
                return
        except NotFoundError:
            pass
        except PortLayerError:
            return
        _log.warning("the template %s does not run any more: another one is made", parent.name)
        await operations.quietly(template.remove(), f"removing the template {parent.name}")

    async def _connected(self, clone: VsphereClone) -> None:
        """A clone's serial port may come unplugged: vSphere takes a reconfiguration for it to dial."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DIAL_S):
                return await self.around.lines.wait_connected(clone.uuid)
        await operations.plug_in(self.around.session, clone.vm, clone.name, self.around.proxy_uri)

    async def _boot_parent(self, shape: Shape) -> Parent:
        boot, token = await self.around.boot(), secrets.token_hex(16)
        key, uuid = self._key(shape, boot), str(uuids.uuid4())
        name = f"{TEMPLATE_NAME}{shape.memory_bytes // _MIB}-{shape.cpus}-{secrets.token_hex(4)}"
        values = {extra_config.TOKEN: token, extra_config.TEMPLATE: "being made"}
        annotation = "Containers start as instant clones of this VM. Managed by its virtual container host."
        config = config_spec.parent(
            shape.memory_bytes, shape.cpus, name, self.around.hardware(boot, token), uuid, values, annotation
        )
        self.around.lines.admit(uuid, token)
        try:
            vm = await self.around.make(config, f"creating the template {name}")
        except BaseException:
            self.around.lines.dismiss(uuid)
            raise
        self.around.into_group(vm)  # its clones begin on its host
        parent = VsphereParent(self, key, vm, name, uuid, token, shape)
        try:
            await self.around.power_on(vm, name)
        except BaseException:
            await parent.discard()
            raise
        return parent

    def _key(self, shape: Shape, boot: Boot) -> str:
        return hashlib.sha256(msgspec.json.encode((shape, boot, self.around.session.endpoint.host))).hexdigest()


def is_supported(session: Session) -> bool:
    """Whether this vSphere has instant clone."""
    version = str(session.content.about.apiVersion).split(".")[:2]
    numbers = tuple(int(part) for part in version if part.isdigit())
    return session.is_vcenter and numbers >= _FIRST_VERSION
