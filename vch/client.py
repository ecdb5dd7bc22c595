"""What the command line asks the port layer over its gRPC API."""

from __future__ import annotations

import grpc

from portlayer.v1 import execution_pb2, execution_pb2_grpc, system_pb2, system_pb2_grpc
from vch.errors import VchError

_REMOVAL_SECONDS = 120.0


def info(address: str, timeout_s: float = 10.0) -> system_pb2.GetInfoResponse | None:
    """None when the port layer does not answer in time."""
    with _channel(address) as channel:
        try:
            return system_pb2_grpc.SystemServiceStub(channel).GetInfo(system_pb2.GetInfoRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return None


def templates(address: str, timeout_s: float = 10.0) -> list[system_pb2.Template] | None:
    """The templates of instant clone; None when the port layer does not answer in time."""
    with _channel(address) as channel:
        stub = system_pb2_grpc.SystemServiceStub(channel)
        try:
            return list(stub.ListTemplates(system_pb2.ListTemplatesRequest(), timeout=timeout_s).templates)
        except grpc.RpcError:
            return None


def remove_containers(address: str, timeout_s: float = _REMOVAL_SECONDS) -> list[str]:
    """Kills and removes every container, all at once; gives back their names. Raises VchError for what stays."""
    with _channel(address) as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        try:
            request = execution_pb2.ListContainersRequest()
            listed = stub.ListContainers(request, timeout=timeout_s, wait_for_ready=True).containers
        except grpc.RpcError as error:
            raise VchError(f"the port layer does not list its containers: {_words(error)}") from error
        removals = [
            stub.RemoveContainer.future(
                execution_pb2.RemoveContainerRequest(container=one.id, force=True), timeout=timeout_s
            )
            for one in listed
        ]
        failures = [
            f"{one.name}: {_words(failure)}"
            for one, removal in zip(listed, removals, strict=True)
            if (failure := removal.exception()) is not None and not _is_gone(failure)
        ]
    if failures:
        raise VchError("containers that could not be removed: " + "; ".join(failures))
    return [one.name for one in listed]


def remove_all(address: str, *, dismantled: bool) -> tuple[list[str], list[str]]:
    """Names of the containers that it removed, and what is still there of what the VCH made for itself, in words.

    The latter is removed if it is to be `dismantled`. Raises VchError.
    """
    names = remove_containers(address)
    return names, dismantle(address) if dismantled else []


def dismantle(address: str, timeout_s: float = _REMOVAL_SECONDS) -> list[str]:
    """Has a VCH without containers remove what it made for itself; gives back what stays. Raises VchError."""
    with _channel(address) as channel:
        stub = system_pb2_grpc.SystemServiceStub(channel)
        try:
            return list(stub.Dismantle(system_pb2.DismantleRequest(), timeout=timeout_s, wait_for_ready=True).stays)
        except grpc.RpcError as error:
            raise VchError(f"what the VCH made in vSphere is not removed: {_words(error)}") from error


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address.replace("unix://", "unix:", 1))


def _is_gone(failure: BaseException) -> bool:
    """A container with --rm may be faster."""
    return isinstance(failure, grpc.Call) and failure.code() == grpc.StatusCode.NOT_FOUND


def _words(failure: BaseException) -> str:
    if isinstance(failure, grpc.Call):
        return failure.details() or str(failure.code())
    return str(failure)
