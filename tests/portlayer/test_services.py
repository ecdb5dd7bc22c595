"""The gRPC API on the wire: a real server and channel above a hypervisor without VMs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from patience import PATIENCE_S

from portlayer import identity
from portlayer.config import Settings
from portlayer.errors import DriverError
from portlayer.server import OPTIONS
from portlayer.services.events import EventsServicer
from portlayer.services.execution import ExecutionServicer
from portlayer.services.interaction import InteractionServicer
from portlayer.services.registration import register
from portlayer.services.system import SystemServicer
from portlayer.v1 import (
    events_pb2,
    events_pb2_grpc,
    execution_pb2_grpc,
    interaction_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    types_pb2,
)
from portlayer.v1 import execution_pb2 as ex
from portlayer.v1 import interaction_pb2 as io

if TYPE_CHECKING:
    from conftest import Host


class Api:
    """Stubs of every service on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.execution = execution_pb2_grpc.ExecutionServiceStub(channel)
        self.interaction = interaction_pb2_grpc.InteractionServiceStub(channel)
        self.events = events_pb2_grpc.EventsServiceStub(channel)
        self.system = system_pb2_grpc.SystemServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]

    async def create(self, *args: str, name: str = "", request_id: str = "", **process: object) -> str:
        config = types_pb2.ProcessConfig(cmd=args, **process)  # type: ignore[arg-type]
        spec = types_pb2.ContainerSpec(image="box", process=config)
        request = ex.CreateContainerRequest(name=name, request_id=request_id, spec=spec)
        return (await self.execution.CreateContainer(request)).container.id

    async def start(self, container: str) -> ex.StartContainerResponse:
        return await self.execution.StartContainer(ex.StartContainerRequest(container=container))


@pytest.fixture
async def api(host: Host, tmp_path: Path) -> AsyncIterator[Api]:
    server = grpc.aio.server(options=OPTIONS)
    who = identity.load(tmp_path, "test")
    settings = Settings(tmp_path, "", tmp_path)
    servicers = [
        ExecutionServicer(host.manager),
        InteractionServicer(host.manager),
        EventsServicer(host.events),
        SystemServicer(who, settings, host.driver, host.manager, host.clones, host.metrics, lambda: 0),
    ]
    await register(server, servicers)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Api(channel)
    await server.stop(None)


def details(error: grpc.aio.AioRpcError, kind: type[Message]) -> Message | None:
    status = rpc_status.from_call(error)
    assert status is not None
    wanted = kind()
    return next((wanted for detail in status.details if detail.Unpack(wanted)), None)


@pytest.mark.parametrize(
    ("networks", "warning"), [({}, "loopback only"), ({"bridge": "a port group"}, "nothing gives these addresses yet")]
)
async def test_what_is_missing_of_networks_is_said(
    api: Api, host: Host, networks: dict[str, str], warning: str
) -> None:
    host.driver.networks = networks
    [said] = (await api.system.GetInfo(system_pb2.GetInfoRequest())).warnings
    assert warning in said


async def test_metrics_say_what_there_is_when_they_are_read(api: Api) -> None:
    await api.create("echo")
    await api.start(await api.create("stubborn"))
    text = (await api.system.GetMetrics(system_pb2.GetMetricsRequest())).text
    lines = text.splitlines()
    assert 'vch_containers{state="created"} 1.0' in lines
    assert 'vch_containers{state="running"} 1.0' in lines
    assert 'vch_container_starts_total{method="cold-boot"} 1.0' in lines


async def test_a_vch_is_dismantled_when_it_has_no_containers(api: Api, host: Host) -> None:
    made = await api.create("echo")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await api.system.Dismantle(system_pb2.DismantleRequest())
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await api.execution.RemoveContainer(ex.RemoveContainerRequest(container=made))
    answer = await api.system.Dismantle(system_pb2.DismantleRequest())
    assert list(answer.stays) == ["a folder: it is not empty"]


async def test_the_whole_life(api: Api) -> None:
    made = await api.create("mixed", name="one", request_id="r")
    assert await api.create("mixed", name="one", request_id="r") == made
    waiting = api.execution.WaitContainer(
        ex.WaitContainerRequest(container=made, condition=ex.WaitContainerRequest.CONDITION_NEXT_EXIT)
    )
    answers = aiter(waiting)
    assert (await anext(answers)).armed
    assert not (await api.start("one")).already_running
    assert (await anext(answers)).exit_code == 3
    logs = io.ReadLogsRequest(container="one", stdout=True, stderr=True)
    chunks = [(chunk.stream, chunk.data) async for chunk in api.interaction.ReadLogs(logs)]
    assert chunks == [(types_pb2.OUTPUT_STREAM_STDOUT, b"out\n"), (types_pb2.OUTPUT_STREAM_STDERR, b"err\n")]
    await api.execution.RenameContainer(ex.RenameContainerRequest(container=made[:12], new_name="two"))
    (listed,) = (await api.execution.ListContainers(ex.ListContainersRequest())).containers
    assert (listed.name, listed.state.exit_code) == ("two", 3)
    await api.execution.RemoveContainer(ex.RemoveContainerRequest(container="two"))
    assert not (await api.execution.ListContainers(ex.ListContainersRequest())).containers


async def test_events_are_those_of_the_calls(api: Api) -> None:
    stream = aiter(api.events.StreamEvents(events_pb2.StreamEventsRequest()))
    async with asyncio.timeout(PATIENCE_S):
        armed = await anext(stream)
        assert not armed.HasField("event")
        made = await api.create("mixed", name="seen")
        event = (await anext(stream)).event
    assert (event.type, event.action, event.actor_id) == ("container", "create", made)
    assert event.attributes["name"] == "seen"


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        (ex.GetContainerRequest(container="nosuch"), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        (ex.PauseContainerRequest(container="idle"), grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT"),
        (ex.KillContainerRequest(container="idle", signal=99), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (ex.CreateContainerRequest(name="idle"), grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    ],
    ids=lambda value: value.DESCRIPTOR.name if isinstance(value, Message) else "",
)
async def test_errors_say_what_they_are_to_programs(api: Api, call: Message, code: object, reason: str) -> None:
    await api.create("stubborn", name="idle")
    method = getattr(api.execution, call.DESCRIPTOR.name.removesuffix("Request"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await method(call)
    assert raised.value.code() is code
    info = details(raised.value, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("portlayer.v1", reason)
    assert details(raised.value, error_details_pb2.RetryInfo) is None


async def test_a_hypervisor_that_fails_may_be_asked_again(api: Api, host: Host) -> None:
    host.driver.fail_next["create"] = DriverError("the datastore is gone")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.create("echo")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "the datastore is gone"
    info = details(raised.value, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.reason == "DRIVER"
    assert details(raised.value, error_details_pb2.RetryInfo) is not None
    await api.create("echo")


async def test_a_launch_that_fails_says_why_to_programs(api: Api) -> None:
    await api.create("nosuch", name="broken")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.start("broken")
    assert raised.value.code() is grpc.StatusCode.ABORTED
    failed = details(raised.value, ex.LaunchFailed)
    assert isinstance(failed, ex.LaunchFailed)
    assert (failed.exit_code, failed.errno) == (127, 2)


async def test_input_goes_in_and_output_comes_out(api: Api) -> None:
    """Messages of any size that gRPC lets pass, down to the last byte."""
    await api.create("cat", name="cat", open_stdin=True, stdin_once=True)
    sent = bytes(range(256)) * (12 << 10)  # 3 MiB

    def requests() -> Iterable[io.AttachRequest]:
        yield io.AttachRequest(open=io.AttachOpen(container="cat", stdin=True, stdout=True, stream=True))
        yield io.AttachRequest(stdin=sent)
        yield io.AttachRequest(close_stdin=True)

    call = aiter(api.interaction.Attach(requests()))
    assert (await anext(call)).HasField("attached")
    await api.start("cat")
    received = b""
    async with asyncio.timeout(PATIENCE_S):
        async for message in call:
            received += message.output.data
    assert received == sent


@pytest.mark.parametrize("logs", [False, True])
async def test_a_client_that_detaches_loses_no_input(api: Api, logs: bool) -> None:
    await api.create("cat", name="cat", open_stdin=True)
    await api.start("cat")
    sent = bytes(range(256)) * (4 << 10)

    def requests() -> Iterable[io.AttachRequest]:
        open_ = io.AttachOpen(container="cat", stdin=True, stdout=True, stream=True, logs=logs)
        yield io.AttachRequest(open=open_)
        yield io.AttachRequest(stdin=sent)
        yield io.AttachRequest(detach=True)

    async with asyncio.timeout(PATIENCE_S):
        async for _ in api.interaction.Attach(requests()):
            pass
        written = b""
        async for message in api.interaction.ReadLogs(io.ReadLogsRequest(container="cat", stdout=True, follow=True)):
            written += message.data
            if len(written) == len(sent):
                break
    assert written == sent
    container = (await api.execution.GetContainer(ex.GetContainerRequest(container="cat"))).container
    assert container.state.status == types_pb2.CONTAINER_STATUS_RUNNING


async def test_a_deadline_ends_a_wait_and_nothing_else(api: Api) -> None:
    await api.create("sleep", name="sleeper")
    await api.start("sleeper")
    waiting = api.execution.WaitContainer(ex.WaitContainerRequest(container="sleeper"), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in waiting:
            pass
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    container = (await api.execution.GetContainer(ex.GetContainerRequest(container="sleeper"))).container
    assert container.state.status == types_pb2.CONTAINER_STATUS_RUNNING
    stopped = await api.execution.StopContainer(ex.StopContainerRequest(container="sleeper"))
    assert stopped.was_running


async def test_a_client_that_gives_up_a_start_does_not_undo_it(api: Api, host: Host) -> None:
    made = await api.create("stubborn", name="slow")
    container = host.manager.get(made)
    starting = api.execution.StartContainer(ex.StartContainerRequest(container="slow"))
    async with asyncio.timeout(PATIENCE_S):
        while container.state.status == types_pb2.CONTAINER_STATUS_CREATED:
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (await api.start("slow")).container.state.status == types_pb2.CONTAINER_STATUS_RUNNING
    assert container.record.run == 1


async def test_health_and_reflection_lead_a_stranger(api: Api) -> None:
    for service in ("", "portlayer.v1.ExecutionService"):
        answer = await api.health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    symbols = (
        "portlayer.v1.ExecutionService",
        "portlayer.v1.ExecutionService.CreateContainer",
        "portlayer.v1.AttachRequest",
        "portlayer.v1.ExecutionService.Nothing",
    )
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    told = [answer async for answer in api.reflection.ServerReflectionInfo(iter(asked))]
    assert [bool(answer.file_descriptor_response.file_descriptor_proto) for answer in told] == [True, True, True, False]
    assert told[-1].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
