"""Errors of the port layer, one tree with a closed set of codes.

    PortLayerError                code
    |- NotFoundError              NOT_FOUND            no such container, image, network, exec
    |- AlreadyExistsError         ALREADY_EXISTS       a name is taken
    |- InvalidArgumentError       INVALID_ARGUMENT     the request makes no sense, an archive is broken
    |- ConflictError              FAILED_PRECONDITION  the state does not allow it
    |- ExhaustedError             RESOURCE_EXHAUSTED   disk or memory of the host, a reader too slow
    |- UnavailableError           UNAVAILABLE          hypervisor or agent does not answer; trying again may help
    |  `- DriverError                                  the hypervisor refused or failed
    `- LaunchError                ABORTED              the program cannot be launched (carries exit code, errno, step)

Each message says what is wrong with what and, where it can, what to do. `services/status.py` is the one mapper to gRPC.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class PortLayerError(Exception):
    """Root; never raised itself."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class NotFoundError(PortLayerError):
    """The thing named does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(PortLayerError):
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class InvalidArgumentError(PortLayerError):
    """The request cannot be meant so; or an archive is broken or hostile."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ConflictError(PortLayerError):
    """The state of the thing does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ExhaustedError(PortLayerError):
    """Disk, memory or patience has run out."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(PortLayerError):
    """Hypervisor or agent does not answer."""

    code = grpc.StatusCode.UNAVAILABLE


class DriverError(UnavailableError):
    """The hypervisor refused or failed."""


class LaunchError(PortLayerError):
    """The program cannot be launched; the container or exec ends with `exit_code`."""

    code = grpc.StatusCode.ABORTED

    def __init__(self, message: str, *, exit_code: int, errno: int, step: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.errno = errno
        self.step = step
