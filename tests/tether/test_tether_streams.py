"""Output and input of real processes: no byte lost, doubled or out of order, whatever becomes of the line."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import signal
from typing import Any, cast

import pytest
from tether_host import PATIENCE_S, Agent, RawHost, Taken, spec, start_request, take, wait_for

from portlayer.agent import AgentClient
from portlayer.agent.errors import FAILED_PRECONDITION, NOT_FOUND, AgentRpcError
from tether.journal import CAPACITY, MAX_CHUNK
from tether.v1 import tether_pb2 as pb

# Three times what the agent keeps: the writer is blocked most of the time.
COUNT = 3 * CAPACITY // 7
COUNTING = f"seq -f %06.0f 1 {COUNT}"


def _counted() -> bytes:
    return b"".join(b"%06d\n" % number for number in range(1, COUNT + 1))


@pytest.mark.slow
async def test_large_output_arrives_whole(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", COUNTING)))
        assert (await take(client.follow("init", 0))).stdout == _counted()


async def test_lines_break_in_mid_output(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", COUNTING)))
        follow = client.follow("init", 0)
        data = b""
        async for message in follow:
            if message.HasField("exited"):
                break
            data += message.output.data
            follow.acknowledge(len(data))
            if len(data) > len(agent.writers) * CAPACITY // 4:
                agent.break_line()
                await agent.until_connected(len(agent.writers) + 1)
        assert data == _counted()
        assert len(agent.writers) > 5


class _Lossy:
    """A reader that swallows, changes or invents bytes now and then."""

    def __init__(self, reader: asyncio.StreamReader, chance: random.Random) -> None:
        self._reader = reader
        self._chance = chance

    async def read(self, size: int) -> bytes:
        data = bytearray(await self._reader.read(size))
        if data and self._chance.random() < 0.1:
            position = self._chance.randrange(len(data))
            match self._chance.randrange(3):
                case 0:
                    del data[position : position + self._chance.randint(1, 50)]
                case 1:
                    data[position] ^= 0xF5
                case _:
                    data[position:position] = b"\xf5vch\x00\x7f"
        return bytes(data) or b"\0"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_noise_in_mid_output(agent: Agent, seed: int) -> None:
    chance = random.Random(seed)

    async def open_channel() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await agent.open_channel()
        return cast(Any, _Lossy(reader, chance)), writer

    async with asyncio.timeout(PATIENCE_S), AgentClient(open_channel) as client:
        await client.start(start_request(spec("sh", "-c", COUNTING)))
        assert (await take(client.follow("init", 0))).stdout == _counted()


async def test_another_host_goes_on_where_the_first_died(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", COUNTING)))
        follow = client.follow("init", 0)
        first = await wait_for(follow, b"012345\n")
    async with agent.connect() as client:
        assert first + (await take(client.follow("init", len(first)))).stdout == _counted()


async def test_writer_is_blocked_until_the_host_acknowledges(agent: Agent) -> None:
    script = f"{COUNTING}; echo >&2 written"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script)))
        follow = client.follow("init", 0)
        received = 0
        with pytest.raises(TimeoutError):
            while True:
                # A good part of it comes, however long that takes; then there is silence.
                async with asyncio.timeout(1 if received > CAPACITY // 2 else None):
                    message = await anext(follow)
                assert message.output.stream == pb.STREAM_STDOUT
                received += len(message.output.data)
        assert received < CAPACITY + MAX_CHUNK
        assert len((await client.processes()).processes) >= 2
        follow.acknowledge(received)
        taken = await take(follow)
        assert received + len(taken.stdout) == COUNT * 7
        assert taken.stderr == b"written\n"


async def test_unacknowledged_output_can_be_had_again(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "echo one; echo two; exec sleep 1000")))
        follow = client.follow("init", 0)
        while follow.offset < 8:
            await anext(follow)
        again = client.follow("init", 2)
        assert await wait_for(again, b"two\n") == b"e\ntwo\n"


async def test_newer_follow_takes_over(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "echo x; exec sleep 1000")))
        first = client.follow("init", 0)
        await anext(first)
        second = client.follow("init", 0)
        assert (await anext(second)).output.data == b"x\n"
        with pytest.raises(AgentRpcError) as refusal:
            await anext(first)
        assert refusal.value.rpc_code == FAILED_PRECONDITION


async def test_exit_is_told_again_until_it_is_recorded(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sh", "-c", "exit 6")))
        for _ in range(2):
            assert (await take(client.follow("e", 0))).exited.exit_code == 6
            agent.break_line()
        await client.signal(pb.SignalRequest(process_id="init", signal=signal.SIGKILL))
    async with agent.connect() as client:
        assert (await take(client.follow("init", 0))).exited.exit_code == 137
        assert (await take(client.follow("e", 0), record=True)).exited.exit_code == 6
        with pytest.raises(AgentRpcError) as refusal:
            await take(client.follow("e", 0))
        assert refusal.value.rpc_code == NOT_FOUND


def test_acknowledgements_in_small_steps(agent: Agent) -> None:
    """One byte at a time, which cuts through the pieces as they are kept."""
    with RawHost(agent.path) as host:
        host.call("Start", start_request(spec("sh", "-c", "printf 0123456789; exec sleep 1000")))
        for offset in range(11):
            stream, taken = host.follow("init", offset), Taken()
            while len(taken.stdout) < 10 - offset:
                host.take(stream, taken)
            assert taken.stdout == b"0123456789"[offset:]
            host.session.send_data(stream, pb.FollowRequest(offset=offset).SerializeToString(), end=True)
            assert host.answer(stream).code == 0
        assert host.call("Follow", pb.FollowRequest(process_id="init", offset=9)).code != 0


async def test_input_and_its_end(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("cat", stdin=True)))
        assert await client.write_input(pb.WriteInputRequest(process_id="init", data=b"one ")) == 4
        # Repeated, overlapping, and going on.
        assert await client.write_input(pb.WriteInputRequest(process_id="init", data=b"one ")) == 4
        assert await client.write_input(pb.WriteInputRequest(process_id="init", offset=2, data=b"e two")) == 7
        for _ in range(2):
            request = pb.WriteInputRequest(process_id="init", offset=7, close=True)
            assert await client.write_input(request) == 7
        taken = await take(client.follow("init", 0))
        assert (taken.stdout, taken.exited.exit_code) == (b"one two", 0)


async def test_large_input_over_a_line_that_breaks(agent: Agent) -> None:
    data = random.Random(1).randbytes(3 << 20)
    async with agent.connect() as client:
        await client.start(start_request(spec("sha256sum", stdin=True)))
        for number, offset in enumerate(range(0, len(data), 65536)):
            request = pb.WriteInputRequest(process_id="init", offset=offset, data=data[offset : offset + 65536])
            writing = asyncio.create_task(client.write_input(request))
            if number % 7 == 0:
                await asyncio.sleep(0)
                agent.break_line()
            assert await writing == offset + 65536
        await client.write_input(pb.WriteInputRequest(process_id="init", offset=len(data), close=True))
        assert (await take(client.follow("init", 0))).stdout[:64].decode() == hashlib.sha256(data).hexdigest()


async def _fill(client: AgentClient, process_id: str) -> tuple[int, asyncio.Task[int]]:
    """Writes input until the agent has room for no more; the offset and the write that waits."""
    offset = 0
    while True:
        request = pb.WriteInputRequest(process_id=process_id, offset=offset, data=bytes(65536))
        writing = asyncio.create_task(client.write_input(request))
        # What there is room for has its answer at once, before that to a call made after it.
        await asyncio.create_task(client.hello(timeout_s=PATIENCE_S))
        if not writing.done():
            return offset, writing
        offset = writing.result()
        assert offset < 1 << 20, "input without bound"


async def test_input_that_nobody_reads_waits(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(
            start_request(
                spec("sh", "-c", "trap 'wc -c; exit' TERM; echo >&2; while :; do sleep 0.05; done", stdin=True)
            )
        )
        follow = client.follow("init", 0)
        await wait_for(follow, b"\n")
        offset, writing = await _fill(client, "init")
        await client.signal(pb.SignalRequest(process_id="init", signal=15))
        assert await writing == offset + 65536
        await client.write_input(pb.WriteInputRequest(process_id="init", offset=offset + 65536, close=True))
        assert int((await take(follow)).stdout) == offset + 65536


async def test_input_that_waits_when_the_process_ends_is_answered(agent: Agent) -> None:
    """Even while a descendant keeps the other end open, so that the pipe itself tells nothing."""
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        process = spec("sh", "-c", "exec 3<&0; sleep 1000 <&3 & exec sleep 1000", stdin=True)
        await client.exec(pb.ExecRequest(process_id="e", process=process))
        while len((await client.processes()).processes) < 3:
            pass
        _, writing = await _fill(client, "e")
        await client.signal(pb.SignalRequest(process_id="e", signal=9))
        with pytest.raises(AgentRpcError) as refusal:
            await writing
        assert refusal.value.rpc_code == FAILED_PRECONDITION


async def test_closed_stdin_of_a_process_that_goes_on(agent: Agent) -> None:
    script = "exec <&-; echo closed; exec sleep 1000"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script, stdin=True)))
        await wait_for(client.follow("init", 0), b"closed\n")
        await client.write_input(pb.WriteInputRequest(process_id="init", data=b"x"))
        with pytest.raises(AgentRpcError) as refusal:
            await client.write_input(pb.WriteInputRequest(process_id="init", offset=1, data=b"x"))
        assert refusal.value.rpc_code == FAILED_PRECONDITION


async def test_without_stdin_there_is_end_of_file(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("cat")))
        assert (await take(client.follow("init", 0))).exited.exit_code == 0


async def test_terminal(agent: Agent) -> None:
    """Controlling, resizable, one stream, end of file as Ctrl-D, interrupt as Ctrl-C."""
    script = "trap 'stty size' WINCH; tty; echo $TERM; stty size </dev/tty; cat; echo end; exit 9"
    size = pb.WindowSize(rows=33, columns=77)
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script, stdin=True, terminal=True, window_size=size)))
        follow = client.follow("init", 0)
        assert await wait_for(follow, b"33 77\r\n") == b"/dev/pts/0\r\nxterm\r\n33 77\r\n"
        await client.write_input(pb.WriteInputRequest(process_id="init", data=b"typed\n"))
        await wait_for(follow, b"typed\r\ntyped\r\n")
        await client.resize(pb.ResizeRequest(process_id="init", window_size=pb.WindowSize(rows=40, columns=90)))
        await client.write_input(pb.WriteInputRequest(process_id="init", offset=6, close=True))
        taken = await take(follow)
        assert taken.exited.exit_code == 9
        assert re.search(rb"40 90\r\n(.|\n)*end\r\n", taken.stdout)


async def test_interrupt_from_the_keyboard(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        process = spec("sh", "-c", "echo ready; exec sleep 1000", stdin=True, terminal=True)
        await client.exec(pb.ExecRequest(process_id="e", process=process))
        follow = client.follow("e", 0)
        await wait_for(follow, b"ready")
        await client.write_input(pb.WriteInputRequest(process_id="e", data=b"\x03"))
        exited = (await take(follow)).exited
        assert (exited.exit_code, exited.signal) == (130, 2)


async def test_streams_belong_to_the_user(agent: Agent) -> None:
    """An unprivileged process may open /dev/stdout and its like again."""
    script = "echo out > /dev/stdout && echo err > /dev/stderr && cat /dev/stdin"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script, stdin=True, user="77")))
        await client.write_input(pb.WriteInputRequest(process_id="init", data=b"in", close=True))
        taken = await take(client.follow("init", 0))
        assert (taken.stdout, taken.stderr, taken.exited.exit_code) == (b"out\nin", b"err\n", 0)


async def test_terminal_belongs_to_the_user(agent: Agent) -> None:
    async with agent.connect() as client:
        process = spec("sh", "-c", "echo out > $(tty) && stat -c %u:%g $(tty)", terminal=True, user="77")
        await client.start(start_request(process))
        assert (await take(client.follow("init", 0))).stdout == b"out\r\n77:5\r\n"
