"""The one mapper from errors of the port layer to gRPC statuses."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from portlayer.errors import LaunchError, PortLayerError, UnavailableError
from portlayer.v1 import execution_pb2

# A message travels twice in the trailers, percent-encoded and within the status, and gRPC drops trailers of 8 KiB.
_MAX_MESSAGE_BYTES = 2048
_DOMAIN = "portlayer.v1"
# When something does not answer, trying again sooner than this is not worth it.
_RETRY_S = 1
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
        await context.abort(grpc.StatusCode.INTERNAL, _shortened(f"internal error: {type(error).__name__}: {error}"))


def _shortened(message: str) -> str:
    """As much of it as fits into a call's trailers, percent-encoded."""
    size = 0
    for position, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if size > _MAX_MESSAGE_BYTES:
            return message[:position] + "..."
    return message


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: PortLayerError) -> None:
    status = status_pb2.Status(code=error.code.value[0], message=_shortened(str(error)))
    for detail in _details(error):
        status.details.add().Pack(detail)
    whole = rpc_status.to_status(status)
    await context.abort(whole.code, whole.details, whole.trailing_metadata)


def _details(error: PortLayerError) -> list[Message]:
    """For programs: which error of the tree it is, and what is special to a failed launch."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=_reason(type(error)), domain=_DOMAIN)]
    if isinstance(error, LaunchError):
        details.append(execution_pb2.LaunchFailed(exit_code=error.exit_code, errno=error.errno, step=error.step))
    if isinstance(error, UnavailableError):
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=_RETRY_S)))
    return details


def _reason(kind: type[PortLayerError]) -> str:
    """AlreadyExistsError becomes ALREADY_EXISTS, as google.rpc.ErrorInfo asks for."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).upper()
