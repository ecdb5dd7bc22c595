"""A session of the front's own with the simulator: it looks at the inventory, makes tasks, and ends other sessions.

Its methods block; the front calls them in threads.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from pyVmomi import vim, vmodl
from vsphere_simulator import HOST, Simulator
from vsphere_soap import envelope

_EXTENSION = "front.tests"
# Tasks are made in an extension's name, as programs beside vCenter make theirs.
_TASK_TYPE = f"{_EXTENSION}.task"
RECONFIGURATION = f"{_EXTENSION}.reconfigure"
POWERING_ON = f"{_EXTENSION}.powerOn"
_LOOK_S = 0.01
_TASK_END_S = 60.0


class Control:
    """Opened by a `with` statement."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self._simulator.connected() as instance:
            self._content: Any = instance.RetrieveContent()
            self._stub = instance._stub
            with contextlib.suppress(vim.fault.AlreadyExists, vmodl.fault.InvalidArgument):
                self._register()
            yield

    def machine(self, identity: str) -> vim.VirtualMachine:
        return vim.VirtualMachine(identity, self._stub)

    def managed(self, kind: str, identity: str) -> vim.ManagedEntity:
        classes = {"VirtualMachine": vim.VirtualMachine, "Folder": vim.Folder, "Task": vim.Task}
        return classes.get(kind, vim.ManagedEntity)(identity, self._stub)

    def read(self, thing: Any, *paths: str) -> dict[str, Any]:
        """Properties of one object. vmodl.fault.ManagedObjectNotFound when it is gone."""
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=type(thing), pathSet=list(paths))],
            objectSet=[collector.ObjectSpec(obj=thing)],
        )
        options = collector.RetrieveOptions()
        found = self._content.propertyCollector.RetrievePropertiesEx([spec], options)
        return {item.name: item.val for item in found.objects[0].propSet}

    def child(self, folder: str, name: str) -> vim.ManagedEntity | None:
        """What is called `name` in the folder.

        Not by SearchIndex.FindChild: the simulator's panics, and hangs from then on, while another VM is being made
        there that has no name yet.
        """
        collector = vmodl.query.PropertyCollector
        step = collector.TraversalSpec(type=vim.Folder, path="childEntity", skip=False)
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.ManagedEntity, pathSet=["name"])],
            objectSet=[collector.ObjectSpec(obj=vim.Folder(folder, self._stub), skip=True, selectSet=[step])],
        )
        options = collector.RetrieveOptions()
        found = self._content.propertyCollector.RetrievePropertiesEx([spec], options)
        for child in found.objects if found is not None else ():
            if any(item.val == name for item in child.propSet or ()):
                return child.obj
        return None

    def unshared_parents(self, identity: str) -> set[str]:
        """What the disks of a VM are children of, and those of no other VM: paths."""
        chains = _chains(self.read(self.machine(identity), "config.hardware.device"))
        if not any(parents for _, parents in chains):
            return set()
        kinds, root = [vim.VirtualMachine], self._content.rootFolder
        view = self._content.viewManager.CreateContainerView(root, kinds, True)
        others = [vm for vm in view.view if vm._moId != identity]
        view.DestroyView()
        used = set()
        for other in others:
            with contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
                for disk, parents in _chains(self.read(other, "config.hardware.device")):
                    used |= {disk, *parents}
        return {parent for _, parents in chains for parent in parents} - used

    def namespace(self, url: str) -> str:
        """By DatastoreNamespaceManager."""
        datacenter = self._content.rootFolder.childEntity[0]
        return str(self._content.datastoreNamespaceManager.ConvertNamespacePathToUuidPath(datacenter, url))

    def unregister(self, identity: str) -> None:
        """Takes a VM out of the inventory; its files stay."""
        self.machine(identity).UnregisterVM()

    def end_sessions(self, keys: set[str]) -> None:
        for key in keys:
            with contextlib.suppress(vim.fault.NotFound):
                self._content.sessionManager.TerminateSession([key])

    def new_task(self, entity: vim.ManagedEntity, kind: str = _TASK_TYPE) -> vim.Task:
        """Running, until `succeed` or `fail` is called."""
        task = self._content.taskManager.CreateTask(entity, kind, None, False).task
        while True:  # the simulator answers before it has put it into its inventory
            try:
                self.read(task, "info.state")
                break
            except vmodl.fault.ManagedObjectNotFound:
                time.sleep(_LOOK_S)
        task.SetTaskState(vim.TaskInfo.State.running)
        return task

    def succeed(self, task: vim.Task, result: vim.ManagedEntity) -> None:
        """Written out here: pyvmomi names the type of a managed object in a way that the simulator does not know."""
        kind = type(result).__name__.rpartition(".")[2]
        told = f'<result xsi:type="ManagedObjectReference" type="{kind}">{result._moId}</result>'
        inner = f'<_this type="Task">{task._moId}</_this><state>success</state>{told}'
        body = envelope(f'<SetTaskState xmlns="urn:vim25">{inner}</SetTaskState>')
        simulator = self._simulator
        context = simulator.certificate.client_context()
        with contextlib.closing(http.client.HTTPSConnection(HOST, simulator.port, context=context)) as connection:
            connection.request("POST", "/sdk", body, {"Cookie": self._stub.cookie, "SOAPAction": "urn:vim25/8.0"})
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise RuntimeError(f"SetTaskState: {answer.read()!r}")

    def fail(self, task: vim.Task, fault: vmodl.MethodFault) -> None:
        task.SetTaskState(vim.TaskInfo.State.error, None, fault)

    def failed_task(self, entity: vim.ManagedEntity, fault: vmodl.MethodFault) -> str:
        task = self.new_task(entity)
        self.fail(task, fault)
        return str(task._moId)

    def outcome(self, identity: str) -> Any:
        """The result of a task, once it has ended. Raises its fault."""
        task = vim.Task(identity, self._stub)
        deadline = time.monotonic() + _TASK_END_S
        while time.monotonic() < deadline:
            info = self.read(task, "info.state", "info.result", "info.error")
            if info["info.state"] == vim.TaskInfo.State.success:
                return info.get("info.result")
            if info["info.state"] == vim.TaskInfo.State.error:
                raise info["info.error"]
            time.sleep(_LOOK_S)
        raise TimeoutError(f"{identity} did not end")

    def create(self, folder: Any, spec: Any, pool: Any, host: Any) -> vim.VirtualMachine:
        """A new machine, switched on; none when that fails."""
        folder = vim.Folder(folder._moId, self._stub)  # which may have come in a request, from another session
        machine = self.outcome(folder.CreateVM_Task(spec, pool, host)._moId)
        try:
            self.outcome(machine.PowerOnVM_Task()._moId)
        except vmodl.MethodFault:
            self.outcome(machine.Destroy_Task()._moId)
            raise
        return machine

    def _register(self) -> None:
        description = vim.Description(label="tests", summary="the front of the tests")
        self._content.extensionManager.RegisterExtension(
            vim.Extension(
                key=_EXTENSION,
                version="1",
                description=description,
                lastHeartbeatTime=datetime.datetime.now(datetime.UTC),
                taskList=[
                    vim.Extension.TaskTypeInfo(taskID=kind) for kind in (_TASK_TYPE, RECONFIGURATION, POWERING_ON)
                ],
            )
        )


def _chains(values: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The file of each disk, and those that it is a child of."""
    found = []
    for device in values.get("config.hardware.device", ()):
        if isinstance(device, vim.vm.device.VirtualDisk):
            parents, backing = [], getattr(device.backing, "parent", None)
            while backing is not None:
                parents.append(str(backing.fileName))
                backing = backing.parent
            found.append((str(device.backing.fileName), parents))
    return found
