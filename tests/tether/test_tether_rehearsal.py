"""Starts that are only rehearsed, and what a container finds that is started after them."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from tether_host import PATIENCE_S, Agent, MakeAgent, spec, start_request, take, wait_for

from portlayer.agent import AgentClient
from portlayer.agent.errors import FAILED_PRECONDITION, NOT_FOUND, AgentRpcError
from tether import linux
from tether.cgroup import Group
from tether.sandbox import Sandbox
from tether.v1 import tether_pb2 as pb

# Names, mounts with their options, devices, what is masked; the last word is how one knows that all is there.
SHOW = "hostname; cat /proc/1/comm; mount | cut -d' ' -f 3,5,6 | sort; ls -l /dev; ls /proc/kcore; exec sleep 1000"


def rehearsal(process: pb.ProcessSpec, number: int = 0, **fields: object) -> pb.StartRequest:
    request = start_request(process, rehearsal=True, **fields)
    request.request_id = f"rehearsal-{number}"
    return request


async def rehearse(client: AgentClient, *args: str, number: int = 0) -> None:
    await client.start(rehearsal(spec(*args), number))
    await take(client.follow("init", 0), record=True)
    await client.reset()


async def test_a_start_after_rehearsals_is_as_if_there_had_been_none(agent: Agent) -> None:
    show = spec("sh", "-c", SHOW)
    async with agent.connect() as client:
        await client.start(rehearsal(show))
        forked = await wait_for(client.follow("init", 0), b"kcore\n")
        await client.reset()
        answer = await client.start(start_request(show))
        assert answer.pid
        grown = await wait_for(client.follow("init", 0), b"kcore\n")
        assert grown == forked
        assert len((await client.processes()).processes) == 1
        hello = await client.hello(timeout_s=PATIENCE_S)
        assert hello.started_request_id == "run-1"


async def test_a_container_is_never_reset(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.reset()  # nothing was started
        await rehearse(client, "true")
        await client.start(start_request(spec("sleep", "1000")))
        with pytest.raises(AgentRpcError) as refusal:
            await client.reset()
        assert refusal.value.rpc_code == FAILED_PRECONDITION
        assert len((await client.processes()).processes) == 1


async def test_reset_leaves_nothing_of_a_rehearsal(agent: Agent) -> None:
    async with agent.connect() as client:
        await rehearse(client, "true")
        before = agent.descriptors()
        script = "trap '' TERM; echo secret > /root/secret; sleep 1000 & sleep 1000 & echo up; wait"
        await client.start(rehearsal(spec("sh", "-c", script, stdin=True), 1))
        follow = client.follow("init", 0)
        assert await wait_for(follow, b"up\n") == b"up\n"
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sleep", "1000")))
        await client.reset()
        with pytest.raises(AgentRpcError):
            await take(follow)
        with pytest.raises(AgentRpcError) as refusal:
            await client.signal(pb.SignalRequest(process_id="e", signal=signal.SIGTERM))
        assert refusal.value.rpc_code == NOT_FOUND
        await agent.until_descriptors(before)
        assert "sleep" not in {child.name() for child in psutil.Process(agent.process.pid).children(recursive=True)}
        await client.start(start_request(spec("sh", "-c", "cat /root/secret; exit 4")))
        taken = await take(client.follow("init", 0), record=True)
        assert (taken.stdout, taken.exited.exit_code) == (b"", 4)


def test_a_start_is_refused_when_the_generator_cannot_be_reseeded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: bytes) -> None:
        raise PermissionError("RNDRESEEDCRNG")

    def mount_disks(_: pb.StartRequest) -> None:
        raise AssertionError("nothing of the container is touched")

    monkeypatch.setattr(linux, "reseed", refuse)
    with pytest.raises(PermissionError):
        Sandbox(Group(tmp_path), mount_disks).start(start_request(spec("true")))


async def test_every_life_has_its_own_boot_id(agent: Agent) -> None:
    async with agent.connect() as client:
        ids = [(await client.hello(timeout_s=PATIENCE_S)).boot_id]
        await client.start(rehearsal(spec("true")))
        ids.append((await client.hello(timeout_s=PATIENCE_S)).boot_id)
        await client.reset()
        ids.append((await client.hello(timeout_s=PATIENCE_S)).boot_id)
        await client.start(start_request(spec("sleep", "1000")))
        ids.append((await client.hello(timeout_s=PATIENCE_S)).boot_id)
    assert len(set(ids)) == 4


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_stem_becomes_any_process(agent: Agent, terminal: bool) -> None:
    async with agent.connect() as client:
        await rehearse(client, "true")
        script = "stty size; tty; echo $A; pwd; exit 5"
        process = spec("sh", "-c", script, env=["A=b"], working_dir="/new", terminal=terminal)
        process.window_size.rows, process.window_size.columns = 33, 77
        await client.start(start_request(process))
        taken = await take(client.follow("init", 0), record=True)
        lines = taken.stdout.decode().split()
        assert lines[-2:] == ["b", "/new"]
        assert (lines[:2] == ["33", "77"], "/dev/pts/0" in lines) == (terminal, terminal)
        assert taken.exited.exit_code == 5


async def test_failures_of_a_stem_say_where_and_why(agent: Agent) -> None:
    async with agent.connect() as client:
        await rehearse(client, "true")
        answer = await client.start(start_request(spec("no-such-program")))
        assert answer.failure.step == pb.LaunchFailure.STEP_EXEC
        assert "no-such-program" in answer.failure.message


@pytest.mark.parametrize(
    ("changes", "script", "found"),
    [
        ({"privileged": True}, "mount | grep ' /sys ' | grep -o '(rw'", b"(rw\n"),
        ({"shm_size_bytes": 1 << 20}, "df -k /dev/shm | grep -m 1 -o ' 1024 ' | head -n 1", b" 1024 \n"),
        ({"sysctls": {"kernel.msgmax": "9000"}}, "cat /proc/sys/kernel/msgmax", b"9000\n"),
    ],
    ids=["privileged", "shm", "sysctl"],
)
async def test_what_a_stem_cannot_be_is_forked(
    agent: Agent, changes: dict[str, object], script: str, found: bytes
) -> None:
    async with agent.connect() as client:
        await rehearse(client, "true")
        await client.start(start_request(spec("sh", "-c", f"{script}; exec sleep 1000"), **changes))
        assert await wait_for(client.follow("init", 0), b"\n") == found
        assert len((await client.processes()).processes) == 1


async def test_the_machine_id_is_the_containers_where_its_image_has_one(make_agent: MakeAgent) -> None:
    this_machines = _machine_id()
    async with make_agent({"etc/machine-id": "the image's"}).connect() as client:
        answer = await client.start(start_request(spec("cat", "/etc/machine-id"), machine_id="ab" * 16))
        assert answer.pid, answer
        taken = await take(client.follow("init", 0), record=True)
        assert taken.stdout == b"ab" * 16 + b"\n"
        assert _machine_id() == this_machines


def _machine_id() -> bytes | None:
    path = Path("/etc/machine-id")
    return path.read_bytes() if path.exists() else None
