"""The agent's calls, on real processes: launching, ending, asking, and what hosts get wrong."""

from __future__ import annotations

import errno
import signal
import time

import pytest
from tether_host import PATIENCE_S, Agent, MakeAgent, RawHost, spec, start_request, take, wait_for

from portlayer.agent import AgentClient
from portlayer.agent.errors import FAILED_PRECONDITION, NOT_FOUND, OUT_OF_RANGE, RESOURCE_EXHAUSTED, AgentRpcError
from tether.v1 import tether_pb2 as pb
from tether.wire import DataReceived, SessionLost, SessionOpened

INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12
SLEEP = spec("sleep", "1000")


async def test_one_life_from_start_to_power_off(agent: Agent) -> None:
    async with agent.connect() as client:
        answer = await client.start(start_request(spec("sh", "-c", "echo out; echo err >&2; exit 3")))
        assert answer.pid
        taken = await take(client.follow("init", 0), record=True)
        assert (taken.stdout, taken.stderr) == (b"out\n", b"err\n")
        assert (taken.exited.exit_code, taken.exited.signal, taken.exited.end_offset) == (3, 0, 8)
        assert await agent.ended() == 0


async def test_start_repeated_is_one_start(agent: Agent) -> None:
    request = start_request(spec("sh", "-c", "echo once; exec sleep 1000"))
    async with agent.connect() as client:
        first = await client.start(request)
        assert await client.start(request) == first
        request.request_id = "run-2"
        with pytest.raises(AgentRpcError) as refusal:
            await client.start(request)
        assert refusal.value.rpc_code == FAILED_PRECONDITION
        assert (await client.hello(timeout_s=PATIENCE_S)).started_request_id == "run-1"
        assert len((await client.processes()).processes) == 1
        assert await wait_for(client.follow("init", 0), b"\n") == b"once\n"


@pytest.mark.parametrize(
    ("process", "step", "number"),
    [
        (spec("no-such-program"), pb.LaunchFailure.STEP_EXEC, errno.ENOENT),
        (spec("/no/such/program"), pb.LaunchFailure.STEP_EXEC, errno.ENOENT),
        (spec("/etc/passwd"), pb.LaunchFailure.STEP_EXEC, errno.EACCES),
        (spec("/etc"), pb.LaunchFailure.STEP_EXEC, errno.EACCES),
        (spec("/text"), pb.LaunchFailure.STEP_EXEC, errno.ENOEXEC),
        (spec("true", user="nobody-here"), pb.LaunchFailure.STEP_USER, errno.EINVAL),
        (spec("true", working_dir="/etc/passwd"), pb.LaunchFailure.STEP_WORKING_DIR, errno.ENOTDIR),
        (spec("true", rlimits=[pb.Rlimit(name="nofile", soft=2, hard=1)]), pb.LaunchFailure.STEP_SETUP, errno.EPERM),
        (spec("true", rlimits=[pb.Rlimit(name="patience")]), pb.LaunchFailure.STEP_SETUP, errno.EINVAL),
    ],
    ids=lambda value: " ".join(value.args) if isinstance(value, pb.ProcessSpec) else "",
)
@pytest.mark.parametrize("terminal", [False, True])
async def test_launch_failures_say_where_and_why(
    make_agent: MakeAgent, process: pb.ProcessSpec, step: int, number: int, terminal: bool
) -> None:
    agent = make_agent({"text": {"text": "neither script nor program\n", "mode": 0o755}})
    launched = pb.ProcessSpec()
    launched.CopyFrom(process)
    launched.terminal = terminal
    async with agent.connect() as client:
        first = await client.start(start_request(launched))
        assert (first.failure.step, first.failure.errno) == (step, number), first
        assert first.failure.message
        assert first.pid == 0
        assert await client.start(start_request(launched)) == first
        with pytest.raises(AgentRpcError) as refusal:
            await client.exec(pb.ExecRequest(process_id="e", process=SLEEP))
        assert refusal.value.rpc_code == FAILED_PRECONDITION


async def test_a_start_that_the_vm_cannot_carry_out_is_a_failure_too(agent: Agent) -> None:
    async with agent.connect() as client:
        request = start_request(SLEEP)
        request.hostname = "x" * 65
        answer = await client.start(request)
        assert (answer.failure.step, answer.failure.errno) == (pb.LaunchFailure.STEP_SETUP, errno.EINVAL)
        assert await client.start(request) == answer


async def test_exec_is_in_the_same_namespaces(agent: Agent) -> None:
    show = "for kind in pid ipc uts mnt cgroup net; do readlink /proc/self/ns/$kind; done; hostname"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", f"{show}; exec sleep 1000")))
        mine = await wait_for(client.follow("init", 0), b"box\n")
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sh", "-c", show)))
        assert (await take(client.follow("e", 0))).stdout == mine
        assert mine.count(b"[") == 6


async def test_exec_repeated_runs_once_even_after_its_record_is_dropped(agent: Agent) -> None:
    request = pb.ExecRequest(process_id="e", process=spec("sh", "-c", "echo x >> /once; cat /once"))
    async with agent.connect() as client:
        await client.start(start_request(SLEEP))
        first = await client.exec(request)
        assert await client.exec(request) == first
        assert (await take(client.follow("e", 0), record=True)).stdout == b"x\n"
        await _gone(client, "e")
        assert await client.exec(request) == first
        await client.exec(pb.ExecRequest(process_id="look", process=spec("cat", "/once")))
        assert (await take(client.follow("look", 0))).stdout == b"x\n"


async def test_failed_exec_repeated_fails_alike_and_leaves_nothing(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(SLEEP))
        for number in range(20):
            process = spec("no-such-program", terminal=number % 2 == 0, stdin=number % 3 == 0)
            request = pb.ExecRequest(process_id=f"e{number}", process=process)
            answer = await client.exec(request)
            assert answer.failure.errno == errno.ENOENT
            request.process.args[:] = ["true"]
            assert await client.exec(request) == answer
            if number == 1:
                before = agent.descriptors()
        await agent.until_descriptors(before)


@pytest.mark.slow
async def test_too_many_processes_are_refused(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(SLEEP))
        for number in range(127):
            await client.exec(pb.ExecRequest(process_id=f"e{number}", process=spec("true")))
        with pytest.raises(AgentRpcError) as refusal:
            await client.exec(pb.ExecRequest(process_id="more", process=spec("true")))
        assert refusal.value.rpc_code == RESOURCE_EXHAUSTED
        await take(client.follow("e0", 0), record=True)
        await _gone(client, "e0")
        assert (await client.exec(pb.ExecRequest(process_id="more", process=spec("true")))).pid


async def test_signals_reach_the_process_and_not_the_agent(agent: Agent) -> None:
    script = "trap 'echo heard' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script)))
        follow = client.follow("init", 0)
        await wait_for(follow, b"ready\n")
        await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGUSR1))
        await wait_for(follow, b"heard\n")
        await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGTERM))
        assert (await take(follow)).exited.exit_code == 7
        with pytest.raises(AgentRpcError) as refusal:
            await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGTERM))
        assert refusal.value.rpc_code == NOT_FOUND


async def test_signal_to_all_reaches_descendants(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "sh -c 'echo $$; exec sleep 1000' & echo; wait; exit 4")))
        follow = client.follow("init", 0)
        while len((await client.processes()).processes) < 2:
            pass
        await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGTERM, all=True))
        assert (await take(follow)).exited.exit_code == 4  # the shell itself, process 1, ignores it


async def test_kill_to_all_is_the_end(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(SLEEP))
        await client.exec(pb.ExecRequest(process_id="e", process=SLEEP))
        await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGKILL, all=True))
        for name in ("e", "init"):
            exited = (await take(client.follow(name, 0))).exited
            assert (exited.exit_code, exited.signal) == (137, 9)


async def test_stop_asks_first_and_kills_after_the_grace_time(agent: Agent) -> None:
    ages = int(PATIENCE_S * 10_000)
    async with agent.connect() as client:
        await client.start(
            start_request(spec("sh", "-c", "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done"))
        )
        follow = client.follow("init", 0)
        await wait_for(follow, b"ready\n")
        began = time.monotonic()
        await client.stop(pb.StopRequest(grace_ms=ages))
        await wait_for(follow, b"no\n")
        await client.stop(pb.StopRequest(grace_ms=700))  # less than before counts
        await client.stop(pb.StopRequest(grace_ms=ages))  # more does not
        exited = (await take(follow)).exited
        assert (exited.exit_code, exited.signal) == (137, 9)
        assert time.monotonic() - began >= 0.7


@pytest.mark.parametrize("grace_ms", [30 * 86_400_000, 2**63, 2**64 - 1])
async def test_stop_may_wait_for_ages(agent: Agent, grace_ms: int) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "trap '' TERM; echo ready; exec sleep 1000")))
        await wait_for(client.follow("init", 0), b"ready\n")
        await client.stop(pb.StopRequest(grace_ms=grace_ms))
        assert (await client.exec(pb.ExecRequest(process_id="e", process=spec("true")))).pid


async def test_list_of_processes(make_agent: MakeAgent) -> None:
    agent = make_agent({"etc/passwd": "root:x:0:0::/:/bin/sh\nm\xfcller:x:77:77::/:/bin/sh\n"})
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000", user="77", terminal=True)))
        init, *_ = (await client.processes()).processes
        assert (init.user, init.uid, init.terminal, list(init.args)) == ("m\ufffdller", 77, "pts/0", ["sleep", "1000"])
        assert init.threads == 1
        while init.state != "S":  # not before it has read all it needs of itself
            init, *_ = (await client.processes()).processes


@pytest.mark.slow
async def test_list_of_huge_and_unreadable_command_lines(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "sleep 1000; true", "x" * 100_000)))
        script = "odd=$(printf '\\377'); sh -c 'sleep 1000; true' \"$odd\" " + "\u20ac" * 9000
        for number in range(30):
            await client.exec(pb.ExecRequest(process_id=f"e{number}", process=spec("sh", "-c", script)))
        found: list[pb.Process] = []
        while sum("\ufffd" in process.args for process in found) < 2:
            found = list((await client.processes()).processes)
        assert sum(len(argument) for process in found for argument in process.args) <= 70_000


async def test_stats(agent: Agent) -> None:
    async with agent.connect() as client:
        with pytest.raises(AgentRpcError) as refusal:
            await client.stats()
        assert refusal.value.rpc_code == FAILED_PRECONDITION
        await client.start(start_request(SLEEP))
        stats = await client.stats()
        assert stats.online_cpus >= 1
        assert stats.system_cpu_ns > 0
        assert stats.vm_memory_bytes > 1 << 20


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("NoSuchMethod", b"", UNIMPLEMENTED),
        ("Start", b"\xff\xff", INVALID_ARGUMENT),
        ("Start", pb.StartRequest(), INVALID_ARGUMENT),
        ("Start", pb.StartRequest(request_id="r", entropy=bytes(31), process=SLEEP), INVALID_ARGUMENT),
        ("Exec", pb.ExecRequest(process_id="e", process=SLEEP), FAILED_PRECONDITION),
        ("Follow", pb.FollowRequest(process_id="init"), NOT_FOUND),
        ("Follow", b"\x0a\xff", INVALID_ARGUMENT),
        ("WriteInput", pb.WriteInputRequest(process_id="init"), NOT_FOUND),
        ("WriteInput", b"\x0a\xff", INVALID_ARGUMENT),
        ("Signal", pb.SignalRequest(process_id="init", signal=9), NOT_FOUND),
        ("Stop", pb.StopRequest(), NOT_FOUND),
        ("Resize", pb.ResizeRequest(process_id="init"), NOT_FOUND),
        ("Processes", b"", FAILED_PRECONDITION),
        ("Stats", b"", FAILED_PRECONDITION),
    ],
)
def test_calls_before_a_start(agent: Agent, method: str, request_: pb.StartRequest | bytes, code: int) -> None:
    with RawHost(agent.path) as host:
        assert host.call(method, request_).code == code
        assert host.call("Hello", b"").code == 0


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("Exec", pb.ExecRequest(process=SLEEP), INVALID_ARGUMENT),
        ("Exec", pb.ExecRequest(process_id="e"), INVALID_ARGUMENT),
        ("Signal", pb.SignalRequest(process_id="init", signal=65), INVALID_ARGUMENT),
        ("Signal", pb.SignalRequest(process_id="init"), INVALID_ARGUMENT),
        ("Stop", pb.StopRequest(signal=65), INVALID_ARGUMENT),
        ("Follow", pb.FollowRequest(process_id="init", offset=1), OUT_OF_RANGE),
        ("Follow", pb.FollowRequest(process_id="init", offset=2**64 - 1), OUT_OF_RANGE),
        ("WriteInput", pb.WriteInputRequest(process_id="init", offset=1, data=b"x"), OUT_OF_RANGE),
        ("WriteInput", pb.WriteInputRequest(process_id="init", data=b"x"), FAILED_PRECONDITION),
        ("Resize", pb.ResizeRequest(process_id="init"), FAILED_PRECONDITION),
    ],
)
def test_impossible_calls(agent: Agent, method: str, request_: pb.ExecRequest, code: int) -> None:
    with RawHost(agent.path) as host:
        assert host.call("Start", start_request(SLEEP)).code == 0
        assert host.call(method, request_).code == code
        assert pb.StartResponse.FromString(host.call("Start", start_request(SLEEP)).payload).pid


def test_another_service_is_unknown(agent: Agent) -> None:
    with RawHost(agent.path) as host:
        assert host.call("Hello", b"", service="grpc.health.v1.Health").code == UNIMPLEMENTED


def test_acknowledging_what_was_never_written_ends_the_follow(agent: Agent) -> None:
    with RawHost(agent.path) as host:
        host.call("Start", start_request(SLEEP))
        request = pb.FollowRequest(process_id="init").SerializeToString()
        stream = host.session.send_request("tether.v1.Tether", "Follow", request, more=True)
        host.session.send_data(stream, pb.FollowRequest(offset=1).SerializeToString())
        assert host.answer(stream).code == OUT_OF_RANGE


def test_an_exit_that_has_not_happened_cannot_be_recorded(agent: Agent) -> None:
    with RawHost(agent.path) as host:
        host.call("Start", start_request(SLEEP))
        request = pb.FollowRequest(process_id="init").SerializeToString()
        stream = host.session.send_request("tether.v1.Tether", "Follow", request, more=True)
        host.session.send_data(stream, pb.FollowRequest(exit_recorded=True).SerializeToString(), end=True)
        assert host.answer(stream).code == 0
        assert host.call("Processes", b"").code == 0


def test_calls_swept_along_with_their_sessions_end_get_no_answer_in_the_next(agent: Agent) -> None:
    """As when a host dies and the next one's HELLO is read together with the first one's last calls."""
    with RawHost(agent.path) as host:
        host.call("Start", start_request(SLEEP))
        for _ in range(3):
            host.session.send_request("tether.v1.Tether", "Hello", b"")
            host.session.send_request("tether.v1.Tether", "NoSuchMethod", b"")
        last_words = host.session.data_to_send()
        host.session.connect()
        host.socket.sendall(last_words + host.session.data_to_send())
        host.until(lambda event: isinstance(event, SessionOpened))
        stats = host.call("Stats", b"")
        assert pb.StatsResponse.FromString(stats.payload).online_cpus >= 1
        assert not host.events


def test_noise_behind_a_call_does_not_kill_the_agent(agent: Agent) -> None:
    with RawHost(agent.path) as host:
        for _ in range(5):
            host.session.send_request("tether.v1.Tether", "Hello", b"")
            host.socket.sendall(host.session.data_to_send() + b"noise")
            host.until(lambda event: isinstance(event, SessionLost))
            host.open()
        assert host.call("Hello", b"").code == 0


def test_data_nobody_waits_for_is_ignored(agent: Agent) -> None:
    with RawHost(agent.path) as host:
        stream = host.session.send_request("tether.v1.Tether", "Hello", b"", more=True)
        host.session.send_data(stream, b"more")
        host.session.send_data(stream, b"", end=True)
        assert host.answer(stream).code == 0
        assert not [event for event in host.events if isinstance(event, DataReceived)]
        assert host.call("Hello", b"").code == 0


async def _gone(client: AgentClient, process_id: str) -> None:
    """Waits until the agent has dropped a process's record (the acknowledgement has no answer)."""
    code = 0
    while code != NOT_FOUND:
        try:
            await client.resize(pb.ResizeRequest(process_id=process_id))
        except AgentRpcError as error:
            code = error.rpc_code
