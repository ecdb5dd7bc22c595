"""Docker's form of an error, and the one mapper from the port layer's errors to it.

DockerError      a status and a sentence; the body of the answer is {"message": sentence}
`- NotServed     501: the API has this endpoint, this host does not serve it (yet); never a fake success
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import grpc
import grpc.aio
from google.rpc import status_pb2

from portlayer.v1 import execution_pb2

# The exit codes of a program that is not executable, and of one that is not there: the client's mistake.
_LAUNCH_MISTAKES = frozenset({126, 127})

_STATUS_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class DockerError(Exception):
    """Ends a request with `status` and {"message": `message`}."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NotServed(DockerError):
    """The endpoint exists in Docker's API and is not served here."""

    def __init__(self, message: str) -> None:
        super().__init__(501, message)


def from_rpc(error: grpc.aio.AioRpcError) -> DockerError:
    """What Docker's clients are told about a call that the port layer refused or did not answer."""
    code = error.code()
    message = error.details() or code.name.lower().replace("_", " ")
    if code is grpc.StatusCode.ABORTED:
        failure = launch_failure(error)
        mistake = failure is not None and failure.exit_code in _LAUNCH_MISTAKES
        return DockerError(400 if mistake else 500, message)
    if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in message:
        message = "the port layer does not answer (is it running?): " + message
    return DockerError(_STATUS_OF_CODE.get(code, 500), message)


def launch_failure(error: grpc.aio.AioRpcError) -> execution_pb2.LaunchFailed | None:
    """The details of a start or exec whose program could not be launched; None for every other error."""
    # What grpc gives, whatever its stubs say.
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        status = status_pb2.Status.FromString(value)
        failure = execution_pb2.LaunchFailed()
        for detail in status.details:
            if detail.Unpack(failure):
                return failure
    return None
