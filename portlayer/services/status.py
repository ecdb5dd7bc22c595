"""The one mapper from errors of the port layer to gRPC statuses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from portlayer.errors import LaunchError, PortLayerError
from portlayer.v1 import execution_pb2

_MAX_MESSAGE = 4096
_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def grpc_errors(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the status of a PortLayerError; anything unforeseen becomes INTERNAL and is logged."""
    try:
        yield
    except PortLayerError as error:
        await _abort(context, error)
    except (grpc.RpcError, grpc.aio.AbortError, grpc.aio.BaseError):
        raise
    except Exception as error:
        _log.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: PortLayerError) -> None:
    message = str(error)[:_MAX_MESSAGE]
    if not isinstance(error, LaunchError):
        await context.abort(error.code, message)
    detail = any_pb2.Any()
    detail.Pack(execution_pb2.LaunchFailed(exit_code=error.exit_code, errno=error.errno, step=error.step))
    status = status_pb2.Status(code=error.code.value[0], message=message, details=[detail])
    whole = rpc_status.to_status(status)
    await context.abort(whole.code, whole.details, whole.trailing_metadata)
