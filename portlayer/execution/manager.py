"""All containers of a VCH: making, finding, naming, and taking them up again after a restart."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from google.protobuf.message import DecodeError

from portlayer.drivers.base import Capacity, Machine, MachineChange, MachineDriver, MachineSpec
from portlayer.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PortLayerError
from portlayer.events import EventHub
from portlayer.execution import names, process_spec, states
from portlayer.execution.behind_our_back import follow_change
from portlayer.execution.container import RECORD_VERSION, Container
from portlayer.execution.exec_process import ExecProcess
from portlayer.execution.host import Host
from portlayer.execution.process_spec import ImageConfig
from portlayer.execution.sizes import Size, check_fits, size_of
from portlayer.execution.tasks import Tasks
from portlayer.metrics import Metrics
from portlayer.networks import Networks, cards
from portlayer.v1 import execution_pb2, record_pb2, types_pb2

if TYPE_CHECKING:  # which needs this package
    from portlayer.instantclone import InstantClones

_log = logging.getLogger(__name__)


class StoredImage(Protocol):
    """What of an image a container needs."""

    @property
    def id(self) -> str: ...
    @property
    def config(self) -> ImageConfig: ...


class Images(Protocol):
    """Where images come from."""

    def get(self, name: str) -> StoredImage:
        """Raises NotFoundError."""

    async def ensure_disk(self, image: StoredImage) -> str:
        """Name of the image's disk in the datastore."""


class Manager:
    """See the module's docstring. `open` first, `close` last; machines go on after that."""

    def __init__(
        self,
        driver: MachineDriver,
        images: Images,
        events: EventHub,
        clones: InstantClones,
        *,
        networks: Networks,
        default_memory_bytes: int,
        default_cpus: int,
        default_disk_bytes: int,
        capacity: Capacity,
        metrics: Metrics,
    ) -> None:
        self._driver = driver
        self._images = images
        self._networks = networks
        self._default_memory_bytes = default_memory_bytes
        self._default_cpus = default_cpus
        self._default_disk_bytes = default_disk_bytes
        self._capacity = capacity
        self._tasks = Tasks()
        self._host = Host(driver, events, self._tasks, clones, metrics)
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._requests: dict[str, asyncio.Future[Container]] = {}
        self._images_in_use: Counter[str] = Counter()

    async def open(self) -> None:
        """Finds the containers in the driver's inventory and takes them up."""
        self._driver.on_change(self._machine_changed)
        for machine in await self._driver.list():
            container = await self._load(machine)
            if container is not None:
                self._add(container)
                if request_id := container.record.create_request_id:
                    self._requests[request_id] = _done(container)
        # All at once: a machine that keeps one waiting must not keep the others.
        await asyncio.gather(*(self._recover(container) for container in list(self._containers.values())))

    async def close(self) -> None:
        """Lets go of everything; machines go on."""
        await self._tasks.close()
        for container in self._containers.values():
            container.detach()

    def containers(self) -> list[Container]:
        """All containers, newest first."""
        return sorted(self._containers.values(), key=lambda one: one.state.created_unix_ns, reverse=True)

    def get(self, reference: str) -> Container:
        """By id, name or unique prefix of the id. Raises NotFoundError, InvalidArgumentError (ambiguous)."""
        name = reference.removeprefix("/")
        if found := self._containers.get(reference) or self._containers.get(self._names.get(name, "")):
            return found
        matches = [one for key, one in self._containers.items() if reference and key.startswith(reference)]
        if len(matches) > 1:
            raise InvalidArgumentError(f"multiple IDs found with provided prefix: {reference}")
        if not matches:
            raise NotFoundError(f"No such container: {reference}")
        return matches[0]

    def clones_by_template(self) -> Counter[str]:
        """How many containers run in clones, by the id of their template."""
        running = (one for one in self._containers.values() if one.live)
        return Counter(one.record.container.template_id for one in running)

    def using_image(self, image_id: str) -> list[str]:
        """Ids of the containers made, or being made, from an image."""
        made = [one.id for one in self._containers.values() if one.record.container.image_id == image_id]
        return made or ["being created"] * min(1, self._images_in_use[image_id])

    async def create(self, request_id: str, name: str, spec: types_pb2.ContainerSpec) -> Container:
        """Makes a container, powered off. The same request id gives the same container."""
        if not request_id:
            return await self._tasks.finish(self._create("", name, spec), "create")
        earlier = self._requests.get(request_id)
        if earlier is not None:
            return await asyncio.shield(earlier)
        answer = self._requests[request_id] = asyncio.get_running_loop().create_future()
        try:
            container = await self._tasks.finish(self._create(request_id, name, spec), "create")
        except BaseException as error:
            self._requests.pop(request_id, None)
            if isinstance(error, Exception):
                answer.set_exception(error)
                answer.exception()  # nobody may be waiting
            else:
                answer.cancel()
            raise
        answer.set_result(container)
        return container

    async def rename(self, container: Container, name: str) -> None:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        new = name.removeprefix("/")
        names.check(new)
        old = container.name
        if new == old:
            raise InvalidArgumentError("Renaming a container with the same name as its current name")
        self._reserve(new, container.id)
        try:
            await container.rename(new)
        except BaseException:
            self._names.pop(new, None)
            raise
        self._names.pop(old, None)

    def get_exec(self, exec_id: str) -> tuple[Container, ExecProcess]:
        """Raises NotFoundError."""
        for container in self._containers.values():
            if process := container.execs.get(exec_id):
                return container, process
        raise NotFoundError(f"No such exec instance: {exec_id}")

    def check_exec(self, spec: execution_pb2.ExecSpec) -> None:
        """Raises InvalidArgumentError."""
        if not spec.args or not spec.args[0]:
            raise InvalidArgumentError("No exec command specified")
        if any("\0" in text for text in (*spec.args, spec.working_dir, spec.user)):
            raise InvalidArgumentError("arguments must not contain NUL")
        process_spec.merge_environment([], spec.env)
        if spec.working_dir and not spec.working_dir.startswith("/"):
            raise InvalidArgumentError("Cwd must be an absolute path")

    async def _recover(self, container: Container) -> None:
        try:
            await container.recover()
        except PortLayerError as error:
            _log.error("container %s cannot be taken up: %s", container.id[:12], error)

    # --- making

    async def _create(self, request_id: str, name: str, spec: types_pb2.ContainerSpec) -> Container:
        container_id = secrets.token_hex(32)
        given = name.removeprefix("/")
        if given:
            names.check(given)
        chosen = given or names.make_up(self._names)
        self._reserve(chosen, container_id)
        try:
            return await self._make(container_id, chosen, request_id, spec)
        except BaseException:
            if container_id not in self._containers:
                self._names.pop(chosen, None)
            raise

    async def _make(self, container_id: str, name: str, request_id: str, spec: types_pb2.ContainerSpec) -> Container:
        networks = self._networks.choose(spec.networks)
        image = self._images.get(spec.image)
        whole = process_spec.complete(spec, image.config, container_id)
        whole.networks[:] = [network.name for network in networks]
        check_fits(whole.resources, self._capacity)
        size = self._size(whole)
        self._images_in_use[image.id] += 1
        try:
            disk = await self._images.ensure_disk(image)
            record = record_pb2.ContainerRecord(version=RECORD_VERSION, create_request_id=request_id, image_disk=disk)
            container = record.container
            container.id, container.name, container.image_id = container_id, name, image.id
            container.spec.CopyFrom(whole)
            container.endpoints.extend(
                types_pb2.NetworkEndpoint(network=one.name, network_id=one.id) for one in networks
            )
            container.state.status = states.CREATED
            container.state.created_unix_ns = time.time_ns()
            machine = await self._driver.create(
                MachineSpec(
                    id=container_id,
                    name=name,
                    memory_bytes=size.memory_bytes,
                    cpus=size.cpus,
                    image_disk=disk,
                    writable_disk_bytes=size.disk_bytes,
                    image_name=whole.image,
                    owner=whole.owner,
                    networks=cards(networks),
                ),
                record.SerializeToString(),
            )
            made = self._container(machine, record, size)
            try:
                await asyncio.to_thread(made.log.open)
            except OSError:
                await self._driver.destroy(machine)
                raise
            self._add(made)
        finally:
            self._images_in_use[image.id] -= 1
        made.emit("create")
        return made

    def _size(self, spec: types_pb2.ContainerSpec) -> Size:
        return size_of(
            spec.resources,
            memory_bytes=self._default_memory_bytes,
            cpus=self._default_cpus,
            disk_bytes=self._default_disk_bytes,
        )

    async def _load(self, machine: Machine) -> Container | None:
        """A container from its machine; one that cannot be read is left alone for an administrator to see."""
        try:
            record = record_pb2.ContainerRecord.FromString(await machine.read_record())
        except (DecodeError, PortLayerError) as error:
            _log.error("the record of machine %s is not readable: %s", machine.id, error)
            return None
        if record.version != RECORD_VERSION or record.container.id != machine.id:
            _log.error("machine %s has a record of version %d: left alone", machine.id, record.version)
            return None
        return self._container(machine, record, self._size(record.container.spec))

    def _container(self, machine: Machine, record: record_pb2.ContainerRecord, size: Size) -> Container:
        record.container.machine = machine.location
        record.container.console_log_path = machine.console_log or ""
        return Container(self._host, machine, record, size)

    def _machine_changed(self, change: MachineChange) -> None:
        """Something happened to a machine; whether by our order the container knows."""
        if (container := self._containers.get(change.machine_id)) is not None:
            self._tasks.spawn(follow_change(container, change), f"{change.kind} {container.id[:12]}")

    def _add(self, container: Container) -> None:
        self._containers[container.id] = container
        self._names[container.name] = container.id
        container.removed.add_done_callback(lambda _: self._forget(container))

    def _forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)
        if self._names.get(container.name) == container.id:
            del self._names[container.name]
        self._requests.pop(container.record.create_request_id, None)

    def _reserve(self, name: str, container_id: str) -> None:
        if other := self._names.get(name):
            raise AlreadyExistsError(
                f'Conflict. The container name "/{name}" is already in use by container "{other}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._names[name] = container_id


def _done(container: Container) -> asyncio.Future[Container]:
    future: asyncio.Future[Container] = asyncio.get_running_loop().create_future()
    future.set_result(container)
    return future
