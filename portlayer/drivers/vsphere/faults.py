"""vSphere's faults as errors of the port layer.

The one place where they are told apart. The fault stays the error's cause, so that code which knows more about one of
them (a VM that is on already, a name that is taken by our own earlier attempt) can look.
"""

from __future__ import annotations

import http.client
import ssl
from typing import TypeGuard
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from portlayer.errors import (
    AlreadyExistsError,
    ConflictError,
    DriverError,
    ExhaustedError,
    NotFoundError,
    PortLayerError,
)

# More than people read of any message.
_MAX_WORDS = 1000
_NOT_FOUND = (vmodl.fault.ManagedObjectNotFound, vim.fault.NotFound, vim.fault.FileNotFound)
_TAKEN = (vim.fault.DuplicateName, vim.fault.AlreadyExists, vim.fault.FileAlreadyExists)
_EXHAUSTED = (vim.fault.InsufficientResourcesFault, vim.fault.NoDiskSpace)
_CONFLICT = (
    vim.fault.InvalidState,
    vim.fault.TaskInProgress,
    vim.fault.ConcurrentAccess,
    vim.fault.FileLocked,
    vim.fault.ResourceInUse,
)
# Worth another try by what they mean: something else is under way, or a host is out of reach for the moment.
_RETRYABLE = (vim.fault.TaskInProgress, vmodl.fault.HostCommunication, vim.fault.HostConnectFault)
# How pyvmomi lets a broken connection and a server that answers with something other than SOAP show.
TRANSPORT_ERRORS = (OSError, http.client.HTTPException, vim.fault.HttpFault, ExpatError)


class TaskLostError(DriverError):
    """vSphere has forgotten a task, so nobody knows whether it was done: look."""


def translated(fault: BaseException, what: str, name: str = "") -> PortLayerError:
    """The error for `fault`, which came of doing `what`; raise it from the fault.

    `name`: of the object that a privilege is lacking on, where it is known.
    """
    if isinstance(fault, PortLayerError):
        return fault
    if lacks_privilege(fault):
        return DriverError(f"{what}: the account lacks {_lacking(fault, name)}")
    if isinstance(fault, vim.fault.PasswordExpired):
        return DriverError(f"{what}: the password has expired")
    if isinstance(fault, vim.fault.InvalidLogin):
        return DriverError(f"{what}: user name or password are refused")
    if isinstance(fault, ssl.SSLCertVerificationError):
        return DriverError(f"{what}: the certificate is not trusted any more: {fault.verify_message}")
    if isinstance(fault, TRANSPORT_ERRORS):
        return DriverError(f"{what}: vSphere does not answer ({words(fault)})")
    return _kind(fault)(f"{what}: {words(fault)}")


def is_retryable(fault: BaseException) -> bool:
    """Whether the very same call may succeed in a moment."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return False
    return isinstance(fault, (*_RETRYABLE, *TRANSPORT_ERRORS))


def lacks_privilege(fault: BaseException | None) -> TypeGuard[vim.fault.NoPermission]:
    """NotAuthenticated, which is a kind of it for vSphere, is something else: there is no session."""
    return isinstance(fault, vim.fault.NoPermission) and not isinstance(fault, vim.fault.NotAuthenticated)


def caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether `error` stands for a fault of one of these kinds."""
    return isinstance(error.__cause__, kinds)


def words(fault: BaseException) -> str:
    """What vSphere says about it, on one line."""
    if not isinstance(fault, vmodl.MethodFault):
        return _on_one_line(str(fault))[:_MAX_WORDS] or type(fault).__name__
    said_by = [getattr(fault, "msg", None), *(one.message for one in fault.faultMessage or ())]
    name = type(fault).__name__.rpartition(".")[2]
    said = "; ".join(dict.fromkeys(line for part in said_by if part and (line := _on_one_line(part))))
    return f"{name}: {said}"[:_MAX_WORDS] if said else name


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _kind(fault: BaseException) -> type[PortLayerError]:
    kinds: tuple[tuple[tuple[type[BaseException], ...], type[PortLayerError]], ...] = (
        (_NOT_FOUND, NotFoundError),
        (_TAKEN, AlreadyExistsError),
        (_EXHAUSTED, ExhaustedError),
        (_CONFLICT, ConflictError),
    )
    return next((error for faults, error in kinds if isinstance(fault, faults)), DriverError)


def _lacking(fault: vim.fault.NoPermission, name: str) -> str:
    """Since 7.0 several privileges at once may be named, and then the field for one may be empty."""
    several = [f"{', '.join(one.privilegeIds)} on {_id(one.entity)}" for one in fault.missingPrivileges or ()]
    where = f"{name} ({_id(fault.object)})" if name else _id(fault.object)
    one = f"{fault.privilegeId} on {where}"
    return f"the privilege {one if fault.privilegeId else ', '.join(several) or one}"


def _id(thing: object) -> str:
    return str(getattr(thing, "_moId", None) or thing)
