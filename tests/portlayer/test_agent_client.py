"""The agent's client against a scripted agent: lost answers, broken lines, lying guests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
from fake_agent import FakeAgent
from fake_driver import open_line
from patience import PATIENCE_S, until

from portlayer.agent import AgentClient, AgentProtocolError, AgentRpcError, AgentUnavailableError, client
from portlayer.agent.follow import MAX_CHUNK
from portlayer.errors import DriverError
from tether import journal
from tether.v1 import tether_pb2 as pb
from tether.wire import MAX_PAYLOAD, link


class Line:
    """A VM's channel that can be connected to again and again."""

    def __init__(self) -> None:
        self.agent = FakeAgent(lambda: None)
        self.up = True
        self.refusals = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.up:
            self.refusals += 1
            raise DriverError("off")
        self.connections += 1
        return await open_line(self.agent, self._tasks.add)

    async def close(self) -> None:
        await self.agent.end()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    await line.close()


def start(*args: str, **spec: bool) -> pb.StartRequest:
    return pb.StartRequest(request_id="r", process=pb.ProcessSpec(args=args, **spec))  # type: ignore[arg-type]


async def test_hello_waits_for_the_agent_to_come_up(line: Line) -> None:
    line.up = False
    async with AgentClient(line.open) as agent:
        waiting = asyncio.create_task(agent.hello(timeout_s=PATIENCE_S))
        await until(lambda: line.refusals > 1)
        line.up = True
        assert (await waiting).protocol == 1


async def test_no_answer_in_time(line: Line) -> None:
    line.up = False
    async with AgentClient(line.open) as agent:
        with pytest.raises(AgentUnavailableError, match="did not answer Hello"):
            await agent.hello(timeout_s=0.05)


async def test_a_call_whose_answer_was_lost_is_repeated(line: Line) -> None:
    async with AgentClient(line.open) as agent:
        await agent.hello(timeout_s=PATIENCE_S)
        line.agent.mute.add("Start")
        waiting = asyncio.create_task(agent.start(start("stubborn")))
        await until(lambda: "Start" in line.agent.requests)
        line.agent.mute.clear()
        line.agent.cut()
        assert (await waiting).pid
        assert line.agent.requests.count("Start") == 2
        assert line.connections == 2


async def test_a_silent_line_is_probed_and_replaced(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SILENCE_S", 0.05)
    async with AgentClient(line.open) as agent:
        await agent.hello(timeout_s=PATIENCE_S)
        line.agent.mute.update(("WriteInput", "Hello"))
        await agent.start(start("cat", stdin=True))
        asked = line.agent.requests.count("Hello")
        waiting = asyncio.create_task(agent.write_input(pb.WriteInputRequest(process_id="init", offset=0, data=b"x")))
        await until(lambda: line.agent.requests.count("Hello") > asked)
        line.agent.mute.clear()
        async with asyncio.timeout(PATIENCE_S):
            assert await waiting == 1


async def test_refusals_are_errors_of_their_own(line: Line) -> None:
    async with AgentClient(line.open) as agent:
        with pytest.raises(AgentRpcError) as raised:
            await agent.signal(pb.SignalRequest(process_id="nobody", signal=1))
        assert raised.value.rpc_code == 5


async def test_output_is_whole_across_broken_lines(line: Line) -> None:
    async with AgentClient(line.open) as agent:
        await agent.start(start("cat", stdin=True))
        follow = agent.follow("init", 0)
        seen = b""
        for number in range(30):
            await agent.write_input(pb.WriteInputRequest(process_id="init", offset=number, data=b"x"))
            if number % 7 == 3:
                line.agent.cut()
        await agent.write_input(pb.WriteInputRequest(process_id="init", offset=30, close=True))
        async for message in follow:
            seen += message.output.data
            if message.HasField("exited"):
                assert message.exited.end_offset == 30
        assert seen == b"x" * 30


async def test_a_recorded_exit_is_told_even_over_a_new_line(line: Line) -> None:
    async with AgentClient(line.open) as agent:
        await agent.start(start("exit", "3"))
        told = asyncio.Event()
        line.agent._power_off = told.set
        follow = agent.follow("init", 0)
        message = await anext(follow)
        assert message.exited.exit_code == 3
        line.agent.cut()
        while not agent.disconnected.is_set():
            await asyncio.sleep(0)
        follow.acknowledge(0, exit_recorded=True)
        await follow.aclose()
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()


def test_both_ends_agree_on_the_largest_piece_and_it_fits_into_a_message() -> None:
    """Else an honest guest would be cut off, or its agent would fail on its own output."""
    assert journal.MAX_CHUNK == MAX_CHUNK
    most = 2**64 - 1
    piece = pb.Output(offset=most, stream=pb.STREAM_STDERR, data=bytes(MAX_CHUNK), time_unix_ns=most)
    assert len(pb.FollowResponse(output=piece).SerializeToString()) <= MAX_PAYLOAD


@pytest.mark.parametrize(
    "response",
    [
        pb.FollowResponse(output=pb.Output(offset=5, data=b"gap")),
        pb.FollowResponse(output=pb.Output(offset=0, data=b"")),
        pb.FollowResponse(output=pb.Output(offset=0, data=b"x" * (MAX_CHUNK + 1))),
        pb.FollowResponse(exited=pb.Exited(exit_code=0, end_offset=9)),
        pb.FollowResponse(exited=pb.Exited(exit_code=70_000)),
    ],
)
async def test_a_lying_guest_is_found_out(line: Line, response: pb.FollowResponse) -> None:
    async with AgentClient(line.open) as agent:
        await agent.start(start("stubborn"))
        follow = agent.follow("init", 0)
        await until(lambda: line.agent._follows)
        stream_id = next(iter(line.agent._follows))
        line.agent._session.send_data(stream_id, response.SerializeToString())
        line.agent._flush()
        with pytest.raises(AgentProtocolError):
            await anext(follow)
        with pytest.raises(AgentProtocolError):
            await agent.hello(timeout_s=PATIENCE_S)


async def test_closing_ends_what_waits(line: Line) -> None:
    agent = AgentClient(line.open)
    agent.open()
    await agent.start(start("stubborn"))
    line.agent.mute.add("Stats")
    waiting = asyncio.create_task(agent.stats())
    follow = agent.follow("init", 0)
    await until(lambda: "Stats" in line.agent.requests and "Follow" in line.agent.requests)
    await agent.aclose()
    with pytest.raises(AgentUnavailableError):
        await waiting
    with pytest.raises(AgentUnavailableError):
        await anext(follow)
    with contextlib.suppress(AgentUnavailableError):
        await agent.hello(timeout_s=1)


@pytest.mark.slow
async def test_a_guest_that_talks_and_does_not_listen_is_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its greetings is answered; answers that it does not read must not pile up."""
    limit = 200_000
    monkeypatch.setattr(client, "_MAX_UNSENT_BYTES", limit)
    greeting = link.encode(link.Frame(link.Kind.LISTENING, 0)) * 4000
    most, connections = 0, 0
    again = asyncio.Event()
    guests: list[socket.socket] = []

    async def open_channel() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        nonlocal connections
        connections += 1
        if connections == 3:
            again.set()
        host, guest = socket.socketpair()
        guest.setblocking(False)
        guests.append(guest)
        return await asyncio.open_connection(sock=host)

    async def shout() -> None:
        nonlocal most
        while True:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                guests[-1].send(greeting)
            if agent._writer is not None:
                most = max(most, agent._writer.transport.get_write_buffer_size())
            await asyncio.sleep(0)

    async with AgentClient(open_channel) as agent:
        await until(lambda: guests)
        shouting = asyncio.create_task(shout())
        async with asyncio.timeout(3 * PATIENCE_S):
            await again.wait()
        shouting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shouting
    for guest in guests:
        guest.close()
    assert 0 < most < 2 * limit + 256 * 1024


async def test_names_and_times_that_a_guest_makes_up(line: Line) -> None:
    """No escape sequence reaches a terminal, no number an overflow."""
    huge = 2**64 - 1
    made_up = pb.Process(
        pid=1, name="a\x1b[31mb", args=["\x1b]0;x\x07", "fine \u00fc", "two\nlines"], started_unix_ns=huge, cpu_ns=huge
    )
    line.agent.process_list = [made_up]
    async with AgentClient(line.open) as agent:
        (process,) = (await agent.processes()).processes
    assert process.name == "a?[31mb"
    assert list(process.args) == ["?]0;x?", "fine \u00fc", "two?lines"]
    assert process.started_unix_ns <= time.time_ns()
    assert process.cpu_ns < 2**63


async def test_a_list_that_is_no_text_is_refused(line: Line) -> None:
    line.agent.raw_processes = b"\x0a\x04\x4a\x02\xff\xfe"  # a process whose name is not UTF-8
    async with AgentClient(line.open) as agent:
        with pytest.raises(AgentProtocolError, match="not readable"):
            await agent.processes()
