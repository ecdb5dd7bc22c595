"""Endpoints of containers: making, listing, their life, and what is known of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
import msgspec

from personality.api.filters import match_labels
from personality.api.images import image_for_platform
from personality.api.networks import refuse_unknown_networks
from personality.backend import Backend
from personality.errors import DockerError, NotServed, from_rpc
from personality.http.messages import Reply, Request, Response, Stream
from personality.http.router import Route
from personality.times import parse_time
from personality.translate import describe, processes, selection
from personality.translate.bodies import ContainerBody, HostConfig
from personality.translate.create import NOT_ASKED, container_spec
from personality.translate.policies import restart_policy
from personality.translate.signals import parse_signal
from portlayer.v1 import execution_pb2 as pb
from portlayer.v1 import storage_pb2, types_pb2

_SIGKILL = 9
_MAX_TIMEOUT_S = (1 << 31) - 1
_CONDITIONS = {
    "": pb.WaitContainerRequest.CONDITION_NOT_RUNNING,
    "not-running": pb.WaitContainerRequest.CONDITION_NOT_RUNNING,
    "next-exit": pb.WaitContainerRequest.CONDITION_NEXT_EXIT,
    "removed": pb.WaitContainerRequest.CONDITION_REMOVED,
}
_PRUNE_FILTERS = frozenset({"until", "label", "label!"})


async def get_container(backend: Backend, name: str, *, size: bool = False) -> pb.GetContainerResponse:
    """A container by name or id. Raises AioRpcError NOT_FOUND."""
    response: pb.GetContainerResponse = await backend.execution.GetContainer(
        pb.GetContainerRequest(container=name, size=size)
    )
    return response


# --- making


async def create(request: Request, backend: Backend) -> Response:
    body = await request.decode(ContainerBody)
    if platform := request.query.get("platform"):
        await image_for_platform(backend, body.image or "", platform)
    if body.entrypoint == [] and not body.cmd:
        await _take_image_command(body, backend)
    spec, warnings = container_spec(body)
    spec.owner = request.caller()
    # One id for this request: if the answer is lost between us and the port layer, nothing is made twice.
    wanted = pb.CreateContainerRequest(request_id=uuid.uuid4().hex, name=request.query.get("name"), spec=spec)
    try:
        made = await backend.execution.CreateContainer(wanted)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            await refuse_unknown_networks(backend, spec.networks)
        raise
    return Reply(201, {"Id": made.container.id, "Warnings": [*warnings, *made.warnings]})


async def _take_image_command(body: ContainerBody, backend: Backend) -> None:
    """An empty entrypoint discards the image's, and keeps its command."""
    image = (await backend.storage.GetImage(storage_pb2.GetImageRequest(name=body.image or ""))).image
    body.cmd = (json.loads(image.config_json).get("config") or {}).get("Cmd")


# --- looking


async def list_containers(request: Request, backend: Backend) -> Response:
    filters = request.query.filters(selection.ACCEPTED)
    listed = (await backend.execution.ListContainers(pb.ListContainersRequest())).containers
    limit = request.query.integer("limit")
    ancestors = await _image_ids(backend, filters.get("ancestor", ()))
    all_ = request.query.flag("all")
    chosen = selection.select(list(listed), filters, all_=all_, limit=limit, ancestors=ancestors)
    # A name that another image has taken since, or none has any more, would mislead.
    named = await _image_ids(backend, {one.spec.image for one in chosen})
    summaries = []
    for one in chosen:
        summary = describe.summary(one)
        if named.get(one.spec.image) != one.image_id:
            summary["Image"] = one.image_id
        try:
            summaries.append(summary | (await _sizes(backend, one) if request.query.flag("size") else {}))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            # Removed meanwhile: no longer part of the list.
    return Reply(body=summaries)


async def _sizes(backend: Backend, container: types_pb2.Container) -> dict[str, int]:
    found = await get_container(backend, container.id, size=True)
    return {
        "SizeRw": found.size_rw_bytes,
        "SizeRootFs": found.size_rw_bytes + await _image_bytes(backend, container.image_id),
    }


async def _image_bytes(backend: Backend, image_id: str) -> int:
    """0 for an image that was removed by force."""
    try:
        found = await backend.storage.GetImage(storage_pb2.GetImageRequest(name=image_id))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return 0
        raise
    return int(found.image.size_bytes)


async def _image_ids(backend: Backend, names: Iterable[str]) -> dict[str, str]:
    """By name, of those that exist."""
    found = {}
    for name in names:
        try:
            found[name] = (await backend.storage.GetImage(storage_pb2.GetImageRequest(name=name))).image.id
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise
    return found


async def inspect(request: Request, backend: Backend) -> Response:
    found = await get_container(backend, request.params["name"])
    described = describe.inspect(found.container)
    if request.query.flag("size"):
        described.update(await _sizes(backend, found.container))
    return Reply(body=described)


async def top(request: Request, backend: Backend) -> Response:
    listed = await backend.execution.ListProcesses(pb.ListProcessesRequest(container=request.params["name"]))
    return Reply(body=processes.table(listed.processes, request.query.get("ps_args", "-ef")))


# --- life


async def start(request: Request, backend: Backend) -> Response:
    response = await backend.execution.StartContainer(pb.StartContainerRequest(container=request.params["name"]))
    return Reply(304 if response.already_running else 204)


def _timeout_s(request: Request) -> int | None:
    """None: the container's own; every negative one is for ever."""
    return min(max(-1, request.query.integer("t")), _MAX_TIMEOUT_S) if request.query.get("t") else None


def _signal(request: Request) -> int:
    return parse_signal(text) if (text := request.query.get("signal")) else 0


async def stop(request: Request, backend: Backend) -> Response:
    response = await backend.execution.StopContainer(
        pb.StopContainerRequest(
            container=request.params["name"], timeout_s=_timeout_s(request), signal=_signal(request)
        )
    )
    return Reply(204 if response.was_running else 304)


async def restart(request: Request, backend: Backend) -> Response:
    await backend.execution.RestartContainer(
        pb.RestartContainerRequest(
            container=request.params["name"], timeout_s=_timeout_s(request), signal=_signal(request)
        )
    )
    return Reply(204)


async def kill(request: Request, backend: Backend) -> Response:
    name = request.params["name"]
    signal = _signal(request) or _SIGKILL
    try:
        await backend.execution.KillContainer(pb.KillContainerRequest(container=name, signal=signal))
    except grpc.aio.AioRpcError as error:
        failed = from_rpc(error)
        raise DockerError(failed.status, f"cannot kill container: {name}: {failed.message}") from error
    return Reply(204)


async def pause(request: Request, backend: Backend) -> Response:
    await backend.execution.PauseContainer(pb.PauseContainerRequest(container=request.params["name"]))
    return Reply(204)


async def unpause(request: Request, backend: Backend) -> Response:
    await backend.execution.UnpauseContainer(pb.UnpauseContainerRequest(container=request.params["name"]))
    return Reply(204)


async def rename(request: Request, backend: Backend) -> Response:
    new_name = request.query.get("name")
    if not new_name.removeprefix("/"):
        raise DockerError(400, "Neither old nor new names may be empty")
    await backend.execution.RenameContainer(
        pb.RenameContainerRequest(container=request.params["name"], new_name=new_name)
    )
    return Reply(204)


async def update(request: Request, backend: Backend) -> Response:
    body = await request.decode(HostConfig)
    given = msgspec.to_builtins(body)
    for name, value in given.items():
        if name != "RestartPolicy" and value not in NOT_ASKED:
            raise NotServed(f"{name} cannot be changed: the size of a container's VM is fixed when it is created")
    wanted = pb.UpdateContainerRequest(container=request.params["name"])
    if body.restart_policy is not None and body.restart_policy.name:
        wanted.restart.CopyFrom(restart_policy(body.restart_policy))
    await backend.execution.UpdateContainer(wanted)
    return Reply(body={"Warnings": []})


async def resize(request: Request, backend: Backend) -> Response:
    rows, columns = window(request)
    await backend.execution.ResizeContainer(
        pb.ResizeContainerRequest(container=request.params["name"], rows=rows, columns=columns)
    )
    return Reply()


def window(request: Request) -> tuple[int, int]:
    """Rows and columns of a terminal, from ?h= and ?w=."""
    rows, columns = request.query.integer("h"), request.query.integer("w")
    if not (0 <= rows <= 0xFFFF and 0 <= columns <= 0xFFFF):
        raise DockerError(400, f"invalid window size: {rows} rows, {columns} columns")
    return rows, columns


async def remove(request: Request, backend: Backend) -> Response:
    if request.query.flag("link"):
        raise DockerError(400, "links are not served: they are of no use without addresses")
    await backend.execution.RemoveContainer(
        pb.RemoveContainerRequest(container=request.params["name"], force=request.query.flag("force"))
    )
    return Reply(204)


async def prune(request: Request, backend: Backend) -> Response:
    filters = request.query.filters(_PRUNE_FILTERS)
    until_ns = parse_time(filters["until"][0], "until") if filters.get("until") else None
    deleted: list[str] = []
    reclaimed = 0
    for one in (await backend.execution.ListContainers(pb.ListContainersRequest())).containers:
        if not _prunable(one, filters, until_ns):
            continue
        try:
            found = await get_container(backend, one.id, size=True)
            await backend.execution.RemoveContainer(pb.RemoveContainerRequest(container=one.id))
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                continue  # removed, or started, meanwhile
            raise
        deleted.append(one.id)
        reclaimed += found.size_rw_bytes
    return Reply(body={"ContainersDeleted": deleted, "SpaceReclaimed": reclaimed})


def _prunable(one: types_pb2.Container, filters: dict[str, list[str]], until_ns: int | None) -> bool:
    return (
        one.state.status in (types_pb2.CONTAINER_STATUS_CREATED, types_pb2.CONTAINER_STATUS_EXITED)
        and (until_ns is None or one.state.created_unix_ns < until_ns)
        and match_labels(filters.get("label", ()), one.spec.labels)
        and not any(match_labels([label], one.spec.labels) for label in filters.get("label!", ()))
    )


async def wait(request: Request, backend: Backend) -> Response:
    condition = _CONDITIONS.get(request.query.get("condition"))
    if condition is None:
        raise DockerError(400, f'invalid condition: "{request.query.get("condition")}"')
    call = backend.execution.WaitContainer(
        pb.WaitContainerRequest(container=request.params["name"], condition=condition)
    )

    async def chunks() -> AsyncIterator[bytes]:
        try:
            # The head goes out as soon as nothing can be missed: clients start the container when they see it.
            async for answer in call:
                yield b"" if answer.armed else _wait_body(answer)
        finally:
            call.cancel()

    return Stream(chunks())


def _wait_body(ended: pb.WaitContainerResponse) -> bytes:
    body: dict[str, Any] = {"StatusCode": ended.exit_code}
    if ended.error:
        body["Error"] = {"Message": ended.error}
    return json.dumps(body).encode() + b"\n"


ROUTES = [
    Route("POST", "/containers/create", create),
    Route("GET", "/containers/json", list_containers),
    Route("POST", "/containers/prune", prune),
    Route("GET", "/containers/{name}/json", inspect),
    Route("GET", "/containers/{name}/top", top),
    Route("POST", "/containers/{name}/start", start),
    Route("POST", "/containers/{name}/stop", stop),
    Route("POST", "/containers/{name}/restart", restart),
    Route("POST", "/containers/{name}/kill", kill),
    Route("POST", "/containers/{name}/pause", pause),
    Route("POST", "/containers/{name}/unpause", unpause),
    Route("POST", "/containers/{name}/rename", rename),
    Route("POST", "/containers/{name}/update", update),
    Route("POST", "/containers/{name}/resize", resize),
    Route("POST", "/containers/{name}/wait", wait),
    Route("DELETE", "/containers/{name}", remove),
]
