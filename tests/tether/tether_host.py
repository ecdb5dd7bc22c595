"""What tests of the agent on this machine, without a VM, share: the agent, clients of it, and what they say."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from google.protobuf.message import Message
from tether_nursery import AgentProcess

from portlayer.agent import AgentClient
from portlayer.agent.follow import Follow
from tether.v1 import tether_pb2 as pb
from tether.wire import DataReceived, Event, ResponseReceived, Role, Session, SessionOpened

# Few things here take a second; on a machine that is busy with other things they may take far more.
PATIENCE_S = 300.0
# Docker's.
CAPABILITIES = [
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
]


def spec(*args: str, **fields: object) -> pb.ProcessSpec:
    """A process as Docker would have it."""
    return pb.ProcessSpec(args=args, capabilities=CAPABILITIES, **fields)  # type: ignore[arg-type]


def start_request(process: pb.ProcessSpec, **fields: object) -> pb.StartRequest:
    return pb.StartRequest(
        request_id="run-1",
        entropy=os.urandom(32),
        hostname="box",
        process=process,
        **fields,  # type: ignore[arg-type]
    )


def open_files() -> set[str]:
    """This process's descriptors and what each of them is.

    How many there are is no measure: what other tests have left, threads of libraries among it, closes in its own time.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{number}: {os.readlink(f'/proc/self/fd/{number}')}")
    return found


@dataclass
class Taken:
    """What one Follow brought."""

    stdout: bytes = b""
    stderr: bytes = b""
    exited: pb.Exited = field(default_factory=pb.Exited)


class Agent:
    """One agent that runs; `connect` makes clients of it."""

    def __init__(self, process: AgentProcess, path: Path) -> None:
        self.process = process
        self.path = path
        self.writers: list[asyncio.StreamWriter] = []

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        self.writers.append(writer)
        return reader, writer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AgentClient]:
        async with asyncio.timeout(PATIENCE_S), AgentClient(self.open_channel) as client:
            await client.hello(timeout_s=PATIENCE_S)
            yield client

    def descriptors(self) -> int:
        """How many the agent has open."""
        *_, pid = (child.pid for child in psutil.Process(self.process.pid).children(recursive=True)[:2])
        return len(os.listdir(f"/proc/{pid}/fd"))

    async def until_descriptors(self, count: int) -> None:
        """Waits until the agent has so many open; within `connect`, which ends the wait."""
        while self.descriptors() != count:
            await asyncio.sleep(0.01)

    def break_line(self) -> None:
        """Cuts the newest connection; the client opens another."""
        self.writers[-1].transport.abort()

    async def until_connected(self, count: int) -> None:
        """Waits until there have been so many connections; within `connect`, which ends the wait."""
        while len(self.writers) < count:
            await asyncio.sleep(0.01)

    async def ended(self) -> int:
        """The agent's exit status, once it has powered off."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)


async def take(follow: Follow, *, acknowledge: bool = True, record: bool = False) -> Taken:
    """Reads a Follow to its end."""
    taken = Taken()
    async for message in follow:
        if message.HasField("exited"):
            taken.exited = message.exited
            break
        if message.output.stream == pb.STREAM_STDERR:
            taken.stderr += message.output.data
        else:
            taken.stdout += message.output.data
        if acknowledge:
            follow.acknowledge(message.output.offset + len(message.output.data))
    if record:
        follow.acknowledge(follow.offset, exit_recorded=True)
    await follow.aclose()
    return taken


async def wait_for(follow: Follow, text: bytes) -> bytes:
    """Reads until the output contains the text."""
    data = b""
    while text not in data:
        message = await anext(follow)
        assert not message.HasField("exited"), (data, message)
        data += message.output.data
        follow.acknowledge(message.output.offset + len(message.output.data))
    return data


class RawHost:
    """A host that says what it likes over one connection, waiting for each answer."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.session = Session(Role.HOST)
        self.events: list[Event] = []

    def __enter__(self) -> RawHost:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def open(self) -> None:
        self.session.connect()
        self.until(lambda event: isinstance(event, SessionOpened))

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Sends what is to be sent and reads until such an event."""
        while True:
            for event in self.events:
                if wanted(event):
                    self.events.remove(event)
                    return event
            self.socket.sendall(self.session.data_to_send())
            data = self.socket.recv(65536)
            assert data, "the agent hung up"
            self.events += self.session.receive_data(data)

    def answer(self, stream_id: int) -> ResponseReceived:
        event = self.until(lambda event: isinstance(event, ResponseReceived) and event.stream_id == stream_id)
        assert isinstance(event, ResponseReceived)
        return event

    def call(self, method: str, request: Message | bytes, *, service: str = "tether.v1.Tether") -> ResponseReceived:
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        return self.answer(self.session.send_request(service, method, payload))

    def follow(self, process_id: str, offset: int = 0) -> int:
        """Asks for output; see `take`."""
        request = pb.FollowRequest(process_id=process_id, offset=offset).SerializeToString()
        return self.session.send_request("tether.v1.Tether", "Follow", request, more=True)

    def take(self, stream_id: int, taken: Taken) -> bool:
        """Adds a Follow's next message to what it brought; whether that was the exit."""
        event = self.until(lambda event: isinstance(event, DataReceived) and event.stream_id == stream_id)
        assert isinstance(event, DataReceived)
        message = pb.FollowResponse.FromString(event.payload)
        if message.HasField("exited"):
            taken.exited = message.exited
        elif message.output.stream == pb.STREAM_STDERR:
            taken.stderr += message.output.data
        else:
            taken.stdout += message.output.data
        return message.HasField("exited")


MakeAgent = Callable[..., Agent]
