"""What becomes of an agent's report that a program cannot be launched: Docker's words and codes."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from fake_agent import FakeAgent

from portlayer.errors import LaunchError
from portlayer.execution.launch_failure import launch_error
from portlayer.v1 import execution_pb2
from tether.v1 import tether_pb2

if TYPE_CHECKING:
    from conftest import Host

Failure = tether_pb2.LaunchFailure


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        (Failure.STEP_EXEC, errno.ENOENT, 127),
        (Failure.STEP_EXEC, errno.EACCES, 126),
        (Failure.STEP_EXEC, errno.ENOMEM, 128),
        (Failure.STEP_WORKING_DIR, errno.ENOENT, 127),
        (Failure.STEP_MOUNT, errno.ENOENT, 128),
        (Failure.STEP_USER, 0, 128),
    ],
)
def test_codes(step: Failure.Step, number: int, code: int) -> None:
    assert launch_error(Failure(step=step, errno=number, message="why"), "container process").exit_code == code


async def test_unknown_users(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(step=Failure.STEP_USER, message="unable to find user x: no matching entries in passwd file")
    container = await host.create("stubborn")
    await container.start()
    monkeypatch.setattr(FakeAgent, "_launch", lambda *_: tether_pb2.StartResponse(failure=failure))
    process = container.execs.create(execution_pb2.ExecSpec(args=["echo"], user="x"))
    with pytest.raises(LaunchError) as raised:
        await container.execs.start(process)
    assert str(raised.value) == failure.message
    assert (raised.value.exit_code, process.exit_code) == (126, 126)
    await container.remove(force=True)
    with pytest.raises(LaunchError, match=r"^unable to find user"):
        await (await host.create("echo", auto_remove=True)).start()


async def test_who_waits_for_a_removal_is_not_told_what_the_starter_was(host: Host) -> None:
    container = await host.create("nosuch", auto_remove=True)
    with pytest.raises(LaunchError):
        await container.start()
    ended = await container.removed
    assert (ended.exit_code, ended.error) == (127, "")
    lost = await host.create("stubborn", auto_remove=True)
    await lost.start()
    await lost.machine.power_off()
    assert "without reporting an exit status" in (await lost.removed).error
