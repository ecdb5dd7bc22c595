"""Errors as gRPC statuses: whatever they say reaches the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from portlayer.errors import InvalidArgumentError, NotFoundError
from portlayer.services.status import grpc_errors
from portlayer.v1 import system_pb2, system_pb2_grpc


class _Fails(system_pb2_grpc.SystemServiceServicer):
    error: Exception = NotFoundError("x")

    async def GetInfo(self, request: system_pb2.GetInfoRequest, context: grpc.aio.ServicerContext) -> object:  # type: ignore[type-arg]
        async with grpc_errors(context):
            raise self.error


@pytest.fixture
async def failing(tmp_path: Path) -> AsyncIterator[tuple[_Fails, system_pb2_grpc.SystemServiceStub]]:
    servicer = _Fails()
    server = grpc.aio.server()
    system_pb2_grpc.add_SystemServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix://{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix://{tmp_path}/s") as channel:
        yield servicer, system_pb2_grpc.SystemServiceStub(channel)
    await server.stop(None)


@pytest.mark.parametrize("text", ["short: ü %", "x" * 100_000, "ü" * 100_000, "%" * 100_000, "\n" * 9_000, "𝄞" * 9_000])
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NotFoundError, grpc.StatusCode.NOT_FOUND),
        (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
        (ValueError, grpc.StatusCode.INTERNAL),
    ],
)
async def test_messages_of_any_length_arrive(
    failing: tuple[_Fails, system_pb2_grpc.SystemServiceStub], text: str, kind: type[Exception], code: grpc.StatusCode
) -> None:
    servicer, stub = failing
    servicer.error = kind(text)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetInfo(system_pb2.GetInfoRequest())
    assert caught.value.code() is code
    details = caught.value.details() or ""
    assert text[:100] in details
    assert len(details) <= 2100
