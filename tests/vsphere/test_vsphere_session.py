"""One session: who is trusted, logging in again, tasks and their ends, and what faults become."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_simulator import HOST, Simulator
from vsphere_waiting import PATIENCE_S

from portlayer.drivers.vsphere import faults
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint, tls_context
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import (
    AlreadyExistsError,
    ConflictError,
    DriverError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
)

WRONG = "AA:" * 31 + "AA"


def endpoint(simulator: Simulator, **how: Any) -> Endpoint:
    return Endpoint(HOST, simulator.port, **(how or {"thumbprint": simulator.thumbprint}))


def credentials(simulator: Simulator) -> Credentials:
    return Credentials(simulator.user, simulator.password)


@pytest.fixture
async def session(simulator: Simulator) -> AsyncIterator[Session]:
    session = Session(endpoint(simulator), credentials(simulator))
    await session.open()
    yield session
    await session.close()


async def find(session: Session, path: str) -> Any:
    return await session.call(session.content.searchIndex.FindByInventoryPath, path, what="looking")


async def create(session: Session, name: str, **spec: Any) -> Any:
    folder, cluster = await find(session, "/DC0/vm"), await find(session, "/DC0/host/DC0_C0")
    pool = (await session.read([cluster], ["resourcePool"]))[cluster]["resourcePool"]
    files = vim.vm.FileInfo(vmPathName="[LocalDS_0]")
    config = vim.vm.ConfigSpec(name=name, memoryMB=128, numCPUs=1, files=files, **spec)
    return await session.run(folder.CreateVM_Task, config, pool, what=f"creating {name}")


@pytest.mark.parametrize("how", ["thumbprint", "bare thumbprint", "ca"])
def test_who_is_trusted(simulator: Simulator, how: str) -> None:
    known = {
        "thumbprint": {"thumbprint": simulator.thumbprint},
        "bare thumbprint": {"thumbprint": simulator.thumbprint.replace(":", "").lower()},
        "ca": {"ca_file": simulator.ca_pem},
    }
    tls_context(endpoint(simulator, **known[how]))


def test_an_unknown_certificate_is_refused_with_its_thumbprint(simulator: Simulator) -> None:
    with pytest.raises(DriverError, match=f"not trusted.*{simulator.thumbprint}.*--thumbprint"):
        tls_context(endpoint(simulator, thumbprint=None))
    with pytest.raises(DriverError, match=f"is another one.*{simulator.thumbprint}"):
        tls_context(endpoint(simulator, thumbprint=WRONG))
    with pytest.raises(InvalidArgumentError, match="64 hexadecimal digits"):
        tls_context(endpoint(simulator, thumbprint="AA:BB"))
    with pytest.raises(DriverError, match="cannot be reached"):
        tls_context(Endpoint(HOST, 1, thumbprint=WRONG))


async def test_a_wrong_thumbprint_is_refused_the_second_time_too(simulator: Simulator) -> None:
    """With pyvmomi's own check the second call would be let through."""
    for _ in range(2):
        with pytest.raises(DriverError, match="is another one"):
            await Session(endpoint(simulator, thumbprint=WRONG), credentials(simulator)).open()


async def test_another_server_in_its_place_is_refused(simulator: Simulator, fresh_simulator: Simulator) -> None:
    """The certificate that was named is the only one for every connection, not for the first alone."""
    session = Session(endpoint(simulator), credentials(simulator), delays_s=())
    await session.open()
    session._stub.DropConnections()
    session._stub.port = fresh_simulator.port
    with pytest.raises(DriverError, match="not trusted any more"):
        await find(session, "/DC0")
    session._stub.port = simulator.port
    await session.close()


async def test_a_wrong_password_is_said_and_never_shown(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = Credentials(simulator.user, "not the password")
    with pytest.raises(DriverError, match=f"{simulator.user}: user name or password are refused") as refused:
        await Session(endpoint(simulator), wrong).open()
    assert "not the password" not in caplog.text + str(refused.value) + repr(wrong)


async def test_results_progress_and_faults_of_tasks(session: Session) -> None:
    vm = await create(session, "one")
    await session.run(vm.PowerOnVM_Task, what="powering on one")
    with pytest.raises(ConflictError, match="powering on one: InvalidPowerState") as refused:
        await session.run(vm.PowerOnVM_Task, what="powering on one")
    assert faults.caused_by(refused.value, vim.fault.InvalidPowerState)
    await session.run(vm.PowerOffVM_Task, what="powering off one")
    await session.run(vm.Destroy_Task, what="removing one")
    with pytest.raises(NotFoundError, match="removing one"):
        await session.run(vm.Destroy_Task, what="removing one")
    assert await session.read([vm], ["name"]) == {}


async def test_many_tasks_at_once(session: Session) -> None:
    vms = await asyncio.gather(*(create(session, f"many-{number}") for number in range(30)))
    names = await session.read(vms, ["name"])
    assert [names[vm]["name"] for vm in vms] == [f"many-{number}" for number in range(30)]
    await asyncio.gather(*(session.run(vm.Destroy_Task, what="removing") for vm in vms))


async def test_a_session_that_was_ended_is_begun_again(simulator: Simulator, session: Session) -> None:
    vm = await create(session, "lasting")
    for _ in range(2):
        cookie = session.cookie
        with simulator.connected() as administrator:
            manager = administrator.RetrieveContent().sessionManager
            own = manager.currentSession.key
            manager.TerminateSession([one.key for one in manager.sessionList if one.key != own])
        # All at once: they log in once between them, and tasks are followed in the new session.
        await asyncio.gather(*(session.run(vm.ReconfigVM_Task, vim.vm.ConfigSpec(), what="x") for _ in range(5)))
        assert session.cookie != cookie
    await session.run(vm.Destroy_Task, what="removing")


async def test_tasks_that_wait_survive_the_end_of_the_session(simulator: Simulator, session: Session) -> None:
    """Somebody waits for a task while the server forgets whom it tells about it."""
    vm = await create(session, "waiting")
    task = await session.call(vm.PowerOnVM_Task, what="on")
    lost = session.tasks._updates._collector
    await session.call(lost.DestroyPropertyCollector, what="as a crash does")
    async with asyncio.timeout(PATIENCE_S):
        await session.tasks.outcome(task, "on", None)
        await session.run(vm.PowerOffVM_Task, what="off")
        await session.run(vm.Destroy_Task, what="removing")


async def test_some_may_wait_for_one_task(session: Session) -> None:
    """And whoever comes when it has ended, and has left the view or not, is told as well."""
    vm = await create(session, "shared")
    try:
        for method in (vm.PowerOnVM_Task, vm.PowerOffVM_Task):
            task = await session.call(method, what="power")
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(session.tasks.outcome(task, "power", None) for _ in range(3)))
                await session.tasks.outcome(task, "power", None)
                await session.run(vm.ReconfigVM_Task, vim.vm.ConfigSpec(), what="another")
                await session.tasks.outcome(task, "power", None)
    finally:
        await session.run(vm.Destroy_Task, what="removing")


async def test_a_closed_session_ends_those_who_wait(simulator: Simulator) -> None:
    session = Session(endpoint(simulator), credentials(simulator))
    await session.open()
    never = asyncio.ensure_future(session.tasks.outcome(vim.Task("task-0", session._stub), "x", None))
    await asyncio.wait([never], timeout=0.2)
    await session.close()
    with pytest.raises(DriverError):
        await never
    with pytest.raises(DriverError):
        await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0", what="after the end")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (vmodl.fault.ManagedObjectNotFound(), NotFoundError, "doing: ManagedObjectNotFound"),
        (vim.fault.DuplicateName(msg="is taken"), AlreadyExistsError, "doing: DuplicateName: is taken"),
        (vim.fault.FileLocked(msg="one\r\n  line\n"), ConflictError, "doing: FileLocked: one line"),
        (vim.fault.NoDiskSpace(), ExhaustedError, "NoDiskSpace"),
        (vim.fault.ConcurrentAccess(), ConflictError, "ConcurrentAccess"),
        (
            vim.fault.NoPermission(privilegeId="VirtualMachine.Inventory.Create"),
            DriverError,
            "VirtualMachine.Inventory",
        ),
        (
            vim.fault.NoPermission(
                missingPrivileges=[
                    vim.fault.NoPermission.EntityPrivileges(
                        entity=vim.Folder("group-v3"), privilegeIds=["Folder.Create", "Folder.Delete"]
                    )
                ]
            ),
            DriverError,
            "lacks the privilege Folder.Create, Folder.Delete on group-v3",
        ),
        (vim.fault.NotAuthenticated(privilegeId="System.View"), DriverError, "doing: NotAuthenticated"),
        (vim.fault.PasswordExpired(), DriverError, "doing: the password has expired"),
        (ConnectionResetError(104, "reset"), DriverError, "reset"),
        (KeyError("none of vSphere's types"), DriverError, "none of vSphere's types"),
    ],
)
def test_what_faults_become(fault: Exception, error: type[Exception], words: str) -> None:
    translated = faults.translated(fault, "doing")
    assert type(translated) is error
    assert words in str(translated)
