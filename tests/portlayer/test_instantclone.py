"""When templates are made, clones wait and containers get them: on a hypervisor whose clones have no VMs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import pytest
from conftest import Host
from fake_agent import FakeAgent
from fake_cloning import CLONE_BYTES, MIB, FakeClone, FakeCloning, FakeGuest, FakeParent
from fake_driver import FakeMachine
from patience import PATIENCE_S, until

from portlayer.drivers.base import Clone, MachineSpec, Shape, Template
from portlayer.errors import DriverError, UnavailableError
from portlayer.execution import Container
from portlayer.instantclone import clones
from portlayer.instantclone.pool import Pool, Waiting
from portlayer.v1 import system_pb2, types_pb2
from tether.v1 import tether_pb2

DEFAULT = Shape(1024 * MIB, 1)
OTHER = Shape(256 * MIB, 1)
SMALL = types_pb2.Resources(memory_bytes=16 * MIB)
COLD_BOOT = types_pb2.START_METHOD_COLD_BOOT
CLONE, POOLED = types_pb2.START_METHOD_CLONE, types_pb2.START_METHOD_POOLED
WAITING, MAKING = system_pb2.Template.STATE_WAITING, system_pb2.Template.STATE_MAKING
READY, FAILED = system_pb2.Template.STATE_READY, system_pb2.Template.STATE_FAILED


@pytest.fixture
def cloning() -> FakeCloning:
    return FakeCloning()


@pytest.fixture
def make_host(
    tmp_path_factory: pytest.TempPathFactory, cloning: FakeCloning
) -> Callable[..., contextlib.AbstractAsyncContextManager[Host]]:
    """A port layer with so many clones that may wait; none is left at its end, nor any task."""

    @contextlib.asynccontextmanager
    async def make(pool_size: int = 0, pool_memory_bytes: int = 1 << 30) -> AsyncIterator[Host]:
        before = asyncio.all_tasks()
        root = tmp_path_factory.mktemp("host")
        host = Host(root, cloning=cloning, pool_size=pool_size, pool_memory_bytes=pool_memory_bytes)
        host.clones._wake, host.clones._idle = Awaited(), Awaited()
        host.clones._idle.set()
        await host.manager.open()
        await host.clones.open()
        try:
            yield host
        finally:
            await host.clones.close()
            await host.manager.close()
            await host.driver.power_off_all()
        assert cloning.guests == []
        async with asyncio.timeout(PATIENCE_S):
            while leaked := asyncio.all_tasks() - before - {asyncio.current_task()}:
                await asyncio.wait(leaked)

    return make


MakeHost = Callable[..., contextlib.AbstractAsyncContextManager[Host]]


def template_of(host: Host, shape: Shape = DEFAULT, clones: dict[str, int] | None = None) -> system_pb2.Template:
    (found,) = (
        one for one in host.clones.describe(clones or {}) if (one.memory_bytes, one.cpus) == (shape.memory_bytes, 1)
    )
    return found


class Awaited(asyncio.Event):
    """Knows whether somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = 0

    async def wait(self) -> Literal[True]:
        self._waiting += 1
        try:
            return await super().wait()
        finally:
            self._waiting -= 1

    @property
    def is_awaited(self) -> bool:
        """It is not set, and who waits for it does nothing else."""
        return bool(self._waiting) and not self.is_set()


async def rested(host: Host) -> None:
    """The worker has nothing to do any more, until it is woken."""
    wake = host.clones._wake
    assert isinstance(wake, Awaited)
    await until(lambda: wake.is_awaited)


async def ready(host: Host, shape: Shape = DEFAULT) -> None:
    await until(lambda: template_of(host, shape).state == READY)
    await rested(host)


async def started(host: Host, **spec: object) -> types_pb2.Container:
    """A container that was started, and has ended."""
    container = await host.create("echo", **spec)
    await run(container)
    return container.to_proto()


async def run(container: Container) -> None:
    ending = container.next_exit()
    await container.start()
    async with asyncio.timeout(PATIENCE_S):
        assert (await ending).exit_code == 0


# --- templates


async def test_the_first_template_is_made_by_itself_and_starts_boot_until_then(
    make_host: MakeHost, cloning: FakeCloning
) -> None:
    cloning.may_boot.clear()
    async with make_host() as host:
        await until(lambda: template_of(host).state == MAKING)
        assert (await started(host)).start_method == COLD_BOOT
        cloning.may_boot.set()
        await ready(host)
        container = await started(host)
        assert container.start_method == CLONE
        assert container.template_id == cloning.kept[DEFAULT].id == template_of(host).id
        assert set(container.start_phases_ns) == {"machine", "restore", "disks", "agent", "exec"}
        assert (container.start_phases_ns["machine"], container.start_phases_ns["restore"]) == (50, 5)
    assert cloning.booted == [DEFAULT]
    assert set(cloning.kept) == {DEFAULT}


async def test_another_shapes_template_is_made_when_it_is_needed(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host() as host:
        await ready(host)
        assert cloning.booted == [DEFAULT]
        assert (await started(host, resources=SMALL)).start_method == COLD_BOOT
        await ready(host, OTHER)
        assert (await started(host, resources=SMALL)).start_method == CLONE
        assert cloning.booted == [DEFAULT, OTHER]


async def test_templates_of_before_are_used_and_not_made_anew(make_host: MakeHost, cloning: FakeCloning) -> None:
    cloning.add_template(DEFAULT)
    cloning.add_template(OTHER)
    async with make_host() as host:
        assert (await started(host)).start_method == CLONE
        assert (await started(host, resources=SMALL)).start_method == CLONE
    assert cloning.booted == []


async def test_a_template_is_made_of_a_guest_that_has_rehearsed(make_host: MakeHost, cloning: FakeCloning) -> None:
    """FakeParent.freeze and FakeClone.suspend insist on it; here that they are asked at all."""
    seen: list[tuple[str, int]] = []
    rests = FakeGuest._rests

    def noting(guest: FakeGuest) -> None:
        rests(guest)
        assert guest.vm is not None
        seen.append((type(guest).__name__, guest.vm.agent.rehearsals))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGuest, "_rests", noting)
        async with make_host(1) as host:
            await until(lambda: template_of(host).pooled == 1)
    assert seen == [("FakeParent", 2), ("FakeClone", 1)]


async def test_a_guest_that_freezes_its_vm_is_told_to_when_nothing_but_clones_is_asked_for_any_more(
    make_host: MakeHost, cloning: FakeCloning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen VM need not take a reconfiguration."""
    cloning.parents_freeze_themselves = True
    order: list[str] = []
    freeze, told = FakeParent.freeze, FakeAgent._on_Freeze

    async def noted(parent: FakeParent, made_in_ns: int) -> Template:
        order.append("kept")
        return await freeze(parent, made_in_ns)

    def heard(agent: FakeAgent, payload: bytes) -> Any:
        order.append("frozen")
        return told(agent, payload)

    monkeypatch.setattr(FakeParent, "freeze", noted)
    monkeypatch.setattr(FakeAgent, "_on_Freeze", heard)
    async with make_host() as host:
        await ready(host)
    assert order == ["kept", "frozen"]


async def test_a_template_whose_guest_does_not_freeze_is_none(make_host: MakeHost, cloning: FakeCloning) -> None:
    cloning.parents_freeze_themselves = True
    cloning.cannot_freeze = "no hands"
    async with make_host() as host:
        await until(lambda: template_of(host).state == FAILED)
        assert "no hands" in template_of(host).error
        assert (cloning.kept, cloning.guests) == ({}, [])


async def test_what_boots_by_order_boots(make_host: MakeHost, cloning: FakeCloning) -> None:
    cloning.add_template(DEFAULT)
    async with make_host(1) as host:
        await until(lambda: template_of(host).pooled == 1)
        assert (await started(host, cold_boot=True)).start_method == COLD_BOOT
        assert (template_of(host).pooled, template_of(host).uses) == (1, 0)


async def test_without_instant_clone_every_start_boots(tmp_path_factory: pytest.TempPathFactory) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    await host.manager.open()
    await host.clones.open()
    assert (await started(host)).start_method == COLD_BOOT
    assert host.clones.describe({}) == []
    await host.clones.close()
    await host.manager.close()
    await host.driver.power_off_all()


async def test_nothing_is_made_while_something_starts(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(2) as host:
        await until(lambda: template_of(host).pooled == 2)
        made = cloning.clones_made
        with host.clones.starting(), host.clones.starting():
            taken = await host.clones.take(machine_spec())
            assert taken is not None
            await taken.clone.discard()
            assert await host.clones.take(machine_spec(OTHER)) is None
            await until(lambda: host.clones._idle.is_awaited)  # the worker would, now
            assert (cloning.clones_made, cloning.booted) == (made, [DEFAULT])
            assert template_of(host, OTHER).state == WAITING
        await ready(host, OTHER)
        assert template_of(host).pooled + template_of(host, OTHER).pooled == 2


def machine_spec(shape: Shape = DEFAULT) -> MachineSpec:
    return MachineSpec("1" * 64, "one", shape.memory_bytes, shape.cpus, "disk", 1 << 30)


@pytest.mark.parametrize("step", ["boot", "attach", "freeze", "launch", "off"])
async def test_a_template_that_cannot_be_made_is_said_and_starts_boot(
    make_host: MakeHost, cloning: FakeCloning, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the guest that was booted for it, and after a while it is tried again."""
    if step in ("boot", "attach", "freeze"):
        cloning.fail_next[step] = DriverError("the moon is full")
    else:
        spoil(step, monkeypatch)
    async with make_host(2) as host:
        await until(lambda: template_of(host).state == FAILED)
        assert template_of(host).error == {
            "launch": "a start could not be rehearsed: no such program",
            "off": "the guest went off while it rehearsed",
        }.get(step, "the moon is full")
        assert cloning.guests == []
        assert (await started(host)).start_method == COLD_BOOT
        await rested(host)
        assert cloning.booted == [DEFAULT]
        host.clones._entries[DEFAULT].retry_at = 0.0
        assert (await started(host)).start_method == COLD_BOOT
        await ready(host)
        assert template_of(host).error == ""
        assert (await started(host)).start_method in (CLONE, POOLED)


def spoil(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next guest that gets disks has an agent that cannot launch, or goes off."""
    attach = FakeGuest.attach_practice_disks

    async def spoilt(guest: FakeGuest) -> None:
        monkeypatch.setattr(FakeGuest, "attach_practice_disks", attach)
        assert guest.vm is not None
        if step == "off":
            guest.vm.agent.mute.add("Start")
            asyncio.get_running_loop().call_later(0.02, guest.vm.cut)
        else:
            failure = tether_pb2.LaunchFailure(message="no such program")
            monkeypatch.setattr(guest.vm.agent, "_launch", lambda *_: tether_pb2.StartResponse(failure=failure))
        await attach(guest)

    monkeypatch.setattr(FakeGuest, "attach_practice_disks", spoilt)


async def test_a_template_that_cannot_be_cloned_makes_starts_boot(make_host: MakeHost, cloning: FakeCloning) -> None:
    cloning.add_template(DEFAULT)
    async with make_host() as host:
        cloning.fail_next["clone"] = DriverError("no memory")
        assert (await started(host)).start_method == COLD_BOOT
        assert (await started(host)).start_method == CLONE


async def test_a_template_that_can_be_cloned_no_more_is_made_anew(make_host: MakeHost, cloning: FakeCloning) -> None:
    """On vSphere the host that it ran on may crash, or an administrator removes it."""
    async with make_host() as host:
        await until(lambda: template_of(host).state == system_pb2.Template.STATE_READY)
        cloning.kept.clear()
        cloning.fail_next["clone"] = DriverError("it does not run")
        assert await host.clones.take(MachineSpec("a" * 64, "c", DEFAULT.memory_bytes, 1, "image", 1)) is None
        await until(lambda: template_of(host).state == system_pb2.Template.STATE_READY and bool(cloning.kept))
        assert cloning.booted == [DEFAULT, DEFAULT]


async def test_a_template_that_nobody_uses_is_removed(
    make_host: MakeHost, cloning: FakeCloning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the default's stays, and so does one that was used lately."""
    used = Shape(512 * MIB, 1)
    for shape in (DEFAULT, OTHER, used):
        cloning.add_template(shape).last_used_unix_ns = 1
    cloning.kept[used].note_use()
    gone = cloning.kept[OTHER].id
    async with make_host() as host:
        await until(lambda: OTHER not in cloning.kept)
        await rested(host)
        assert set(cloning.kept) == {DEFAULT, used}
        assert {one.memory_bytes for one in host.clones.describe({})} == {DEFAULT.memory_bytes, used.memory_bytes}
        assert [(event.type, event.action, event.actor_id) for event in host.events._history(0, 0)] == [
            ("template", "destroy", gone)
        ]
        assert (await started(host, resources=SMALL)).start_method == COLD_BOOT
        await ready(host, OTHER)


# --- the pool


async def test_the_pool_fills_to_its_size(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(3) as host:
        await until(lambda: template_of(host).pooled == 3)
        await rested(host)
        assert (template_of(host).pooled, cloning.clones_made) == (3, 3)
        assert not any(guest.runs for guest in cloning.guests)


async def test_the_pool_takes_no_more_memory_than_it_may(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(4, 3 * CLONE_BYTES - 1) as host:
        await until(lambda: template_of(host).pooled == 2)
        await rested(host)
        assert (template_of(host).pooled, cloning.clones_made) == (2, 2)


async def test_a_pool_with_no_room_for_one_does_not_go_on_trying(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(4, CLONE_BYTES - 1) as host:
        await ready(host)
        assert (await started(host)).start_method == CLONE
        await rested(host)
        assert (await started(host)).start_method == CLONE
        await rested(host)
        assert (template_of(host).pooled, cloning.clones_made) == (0, 3)  # two starts, and one to see that it is large


async def test_no_pool(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(0) as host:
        await ready(host)
        assert cloning.clones_made == 0
        assert (await started(host)).start_method == CLONE
        await rested(host)
        assert (template_of(host).pooled, cloning.clones_made) == (0, 1)


async def test_a_clone_that_waits_is_taken_first_and_replaced(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(1) as host:
        await until(lambda: template_of(host).pooled == 1)
        with host.clones.starting():  # so that the place stays empty
            first, second = await asyncio.gather(started(host), started(host))
            assert {first.start_method, second.start_method} == {POOLED, CLONE}
        pooled = first if first.start_method == POOLED else second
        assert (pooled.start_phases_ns["machine"], pooled.start_phases_ns["restore"]) == (0, 0)
        await until(lambda: template_of(host).pooled == 1)
        assert (await started(host)).start_method == POOLED
        assert template_of(host, clones={pooled.template_id: 5}).clones == 5
        assert template_of(host).uses == 3


async def test_a_clone_that_dies_while_it_waits_is_replaced(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(1) as host:
        await until(lambda: template_of(host).pooled == 1)
        (dead,) = cloning.guests
        assert dead.vm is not None
        dead.vm.cut()
        await until(lambda: dead not in cloning.guests and template_of(host).pooled == 1)
        assert (await started(host)).start_method == POOLED


async def test_a_dead_clone_that_stays_for_now_is_replaced(
    make_host: MakeHost, cloning: FakeCloning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hypervisor is away when it is to be removed; the place is filled at once, not at the next look round."""
    monkeypatch.setattr(clones, "_LOOK_ROUND_S", 3600.0)
    async with make_host(1) as host:
        await until(lambda: template_of(host).pooled == 1)
        (dead,) = cloning.guests
        assert dead.vm is not None
        cloning.fail_next["discard"] = DriverError("vSphere does not answer")
        dead.vm.cut()
        await until(lambda: dead is not cloning.guests[-1] and template_of(host).pooled == 1)
        await dead.discard()


@pytest.mark.parametrize("pool_size", [0, 1])
@pytest.mark.parametrize("how", ["refused", "dead", "dies"])
async def test_a_container_whose_clone_is_of_no_use_boots(
    make_host: MakeHost, cloning: FakeCloning, pool_size: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hypervisor refuses, the clone was dead already, or it dies before its agent is reached."""
    cloning.add_template(DEFAULT)
    become = FakeClone.become

    def spoilt(clone: FakeClone) -> object:
        monkeypatch.undo()
        assert clone.vm is not None
        if how == "refused":
            raise DriverError("no such disk")
        if how == "dead":
            clone.vm.cut()
        vm = become(clone)
        vm.cut()
        return vm

    async with make_host(pool_size) as host:
        await until(lambda: template_of(host).pooled == pool_size)
        monkeypatch.setattr(FakeClone, "become", spoilt)
        container = await started(host)
        assert container.start_method == COLD_BOOT
        assert container.template_id == ""
        assert set(container.start_phases_ns) == {"machine", "agent", "exec"}
        assert (await started(host)).start_method in (CLONE, POOLED)


@pytest.mark.parametrize("moment", ["cloning", "moving in", "starting"])
async def test_a_container_that_is_removed_while_it_starts_does_not_boot(
    make_host: MakeHost, cloning: FakeCloning, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting its clone's power is no failure of the clone, and a guest that hangs is not waited for."""
    template = cloning.add_template(DEFAULT)
    async with make_host() as host:
        container = await host.create("stubborn")
        machine = container.machine
        assert isinstance(machine, FakeMachine)
        machine.mute = {"Hello", "Start"}
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def pause() -> None:
            reached.set()
            await go_on.wait()

        clone, power_on = template.clone, machine.power_on

        async def slow_clone() -> Clone:
            await pause()
            return await clone()

        async def slow_power_on(clone: Clone | None = None) -> None:
            await power_on(clone)
            await pause()

        if moment == "cloning":
            monkeypatch.setattr(template, "clone", slow_clone)
        elif moment == "moving in":
            monkeypatch.setattr(machine, "power_on", slow_power_on)
        starting = asyncio.create_task(container.start())
        if moment == "starting":
            await until(lambda: machine.agent is not None and "Start" in machine.agent.requests)
        else:
            await reached.wait()
        removing = asyncio.create_task(container.remove(force=True))
        await until(lambda: container._power.cut_by_order)
        go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(UnavailableError, match="the VM"):
                await starting
            await removing
        assert host.driver.machines == {}
        assert cloning.guests == []


async def test_places_follow_what_is_asked_for(make_host: MakeHost, cloning: FakeCloning) -> None:
    cloning.add_template(DEFAULT)
    cloning.add_template(OTHER)
    async with make_host(4) as host:
        await until(lambda: template_of(host).pooled == 4)
        for _ in range(16):
            taken = await host.clones.take(machine_spec(OTHER))
            assert taken is not None
            await taken.clone.discard()
        await until(lambda: (template_of(host).pooled, template_of(host, OTHER).pooled) == (0, 4))
        await rested(host)
        assert len(cloning.guests) == 4


def waiting(shape: Shape, cloning: FakeCloning) -> Waiting:
    return Waiting(FakeClone(shape, cloning), CLONE_BYTES)


async def test_shares_are_in_proportion_to_the_last_starts(cloning: FakeCloning) -> None:
    pool = Pool(4, 1 << 30, DEFAULT)
    for _ in range(4):
        assert pool.wanting({DEFAULT, OTHER}) == DEFAULT
        assert pool.add(waiting(DEFAULT, cloning))
    assert pool.wanting({DEFAULT, OTHER}) is None
    assert pool.take_surplus() is None
    for _ in range(8):
        pool.note_start(OTHER)
    surplus = [pool.take_surplus(), pool.take_surplus(), pool.take_surplus()]
    assert [clone and clone.shape for clone in surplus] == [DEFAULT, DEFAULT, None]
    assert pool.wanting({DEFAULT}) is None  # as long as the other cannot be cloned, its places stay empty
    assert pool.wanting({DEFAULT, OTHER}) == OTHER


async def test_who_has_waited_longest_goes_first(cloning: FakeCloning) -> None:
    pool = Pool(3, 1 << 30, DEFAULT)
    clones = [waiting(DEFAULT, cloning) for _ in range(3)]
    for one in clones:
        assert pool.add(one)
    pool.drop(clones[1].clone)
    pool.drop(clones[1].clone)
    assert pool.private_bytes == 2 * CLONE_BYTES
    assert [pool.take(DEFAULT), pool.take(DEFAULT), pool.take(DEFAULT)] == [clones[0].clone, clones[2].clone, None]


# --- the end


async def test_the_end_leaves_templates_and_containers_alone(make_host: MakeHost, cloning: FakeCloning) -> None:
    """What waits is nobody's and goes; nothing is made after that."""
    async with make_host(2) as host:
        await until(lambda: template_of(host).pooled == 2)
        container = await host.create("stubborn")
        await container.start()
        assert container.to_proto().start_method == POOLED
        await host.clones.close()
        assert cloning.guests == []
        assert set(cloning.kept) == {DEFAULT}
        assert isinstance(container.machine, FakeMachine)
        assert container.machine.agent is not None
        assert (await started(host)).start_method == CLONE
        assert host.clones._worker is not None
        assert host.clones._worker.done()
        assert cloning.guests == []


@pytest.mark.parametrize("moment", ["boot", "rehearsal of a template", "rehearsal of a clone"])
async def test_the_end_in_the_middle_of_something_leaves_nothing(
    make_host: MakeHost, cloning: FakeCloning, moment: str
) -> None:
    if moment == "boot":
        cloning.may_boot.clear()
    if moment == "rehearsal of a clone":
        cloning.add_template(DEFAULT)
    with pytest.MonkeyPatch.context() as patch:
        attach = FakeGuest.attach_practice_disks

        async def silent(guest: FakeGuest) -> None:
            assert guest.vm is not None
            guest.vm.agent.mute.add("Start")
            await attach(guest)

        patch.setattr(FakeGuest, "attach_practice_disks", silent)
        async with make_host(2):  # which sees that no guest is left
            await until(lambda: bool(cloning.booted) if moment == "boot" else any(g.has_disks for g in cloning.guests))
    assert set(cloning.kept) == ({DEFAULT} if moment == "rehearsal of a clone" else set())


# --- what is told


async def test_events_tell_of_templates_and_of_how_containers_start(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host() as host:
        await ready(host)
        await started(host)
        made, start = (one for one in host.events._history(0, 0) if (one.type, one.action) in TOLD)
        assert made.actor_id == cloning.kept[DEFAULT].id
        assert made.attributes == {"memory": str(DEFAULT.memory_bytes), "cpus": "1"}
        assert start.attributes["startMethod"] == "clone"
        assert float(start.attributes["startMilliseconds"]) > 0


TOLD = {("template", "create"), ("container", "start")}


async def test_all_of_a_template_is_told(make_host: MakeHost, cloning: FakeCloning) -> None:
    async with make_host(1) as host:
        await until(lambda: template_of(host).pooled == 1)
        template, about = cloning.kept[DEFAULT], template_of(host, clones={cloning.kept[DEFAULT].id: 7})
        assert about == system_pb2.Template(
            id=template.id,
            state=READY,
            memory_bytes=DEFAULT.memory_bytes,
            cpus=1,
            disk_bytes=template.disk_bytes,
            resident_bytes=template.resident_bytes,
            created_unix_ns=template.created_unix_ns,
            last_used_unix_ns=template.last_used_unix_ns,
            made_in_ns=template.made_in_ns,
            clones=7,
            pooled=1,
        )
        assert template.made_in_ns > 0
