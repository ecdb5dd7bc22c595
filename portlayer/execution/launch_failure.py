"""Why a program cannot be launched, in the words and codes that Docker's users know."""

from __future__ import annotations

import errno

from portlayer.agent.claims import printable
from portlayer.errors import LaunchError
from tether.v1 import tether_pb2

_STEPS = {
    tether_pb2.LaunchFailure.STEP_MOUNT: "mount",
    tether_pb2.LaunchFailure.STEP_USER: "user",
    tether_pb2.LaunchFailure.STEP_WORKING_DIR: "working_dir",
    tether_pb2.LaunchFailure.STEP_EXEC: "exec",
}
_NOT_FOUND = frozenset((errno.ENOENT,))
_NOT_EXECUTABLE = frozenset((errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR, errno.ENOTDIR))
_MAX_MESSAGE = 4096


def launch_error(failure: tether_pb2.LaunchFailure, what: str) -> LaunchError:
    """The error for an agent's report; `what` could not be started."""
    step = _STEPS.get(failure.step, "setup")
    exit_code = 128
    if step in ("exec", "working_dir"):
        exit_code = 127 if failure.errno in _NOT_FOUND else 126 if failure.errno in _NOT_EXECUTABLE else 128
    message = printable(failure.message, _MAX_MESSAGE)
    return LaunchError(
        # Who a process is to be is found out before anything is started.
        message if step == "user" else f"unable to start {what}: {message}",
        exit_code=exit_code,
        errno=failure.errno,
        step=step,
    )
