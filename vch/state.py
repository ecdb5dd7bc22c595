"""The state directory as the command line sees it: which process holds it, and how to reach that VCH.

Whoever brings a VCH up or down holds a POSIX lock on `vch.lock` for as long as it lives, whatever kills it; the kernel
tells everybody else which process that is. `run.json` says how the VCH is reached. It stays there afterwards, for
`vch down --force` on a VCH that is no longer up, and is believed only while its own process holds the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vch.errors import AlreadyUpError, ConfigurationError
from vch.vsphere_options import Vsphere

_LOCK = "vch.lock"
_RUN = "run.json"
# struct flock: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqixxxx")


@dataclass(frozen=True)
class Running:
    """A VCH that serves, or once served."""

    pid: int
    # Seconds since 1970.
    started: float
    name: str
    hosts: tuple[str, ...]
    grpc: str
    # Process of each part.
    parts: dict[str, int]
    # To start the port layer again as it was.
    portlayer_arguments: tuple[str, ...]
    # What was said of vSphere; without passwords.
    vsphere: Vsphere | None = None


def ensure(state_dir: Path) -> None:
    """Makes the directory, closed to other users."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the state directory {state_dir}: {error.strerror}") from error


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Holds the directory; raises AlreadyUpError when another process does."""
    descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyUpError(already_up(state_dir)) from None
        yield
    finally:
        os.close(descriptor)


def holder(state_dir: Path) -> int | None:
    """The process that holds the directory. Asks without locking, so that it is in nobody's way."""
    try:
        descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def require_down(state_dir: Path) -> None:
    """Raises AlreadyUpError while a process holds the directory."""
    if holder(state_dir) is not None:
        raise AlreadyUpError(already_up(state_dir))


def already_up(state_dir: Path) -> str:
    """What to say to a second `up`."""
    running = read(state_dir)
    if running is None:
        return f"a VCH is being started or ended on {state_dir} (process {holder(state_dir)})"
    return f"VCH {running.name} is already up on {state_dir} (process {running.pid}): DOCKER_HOST={running.hosts[0]}"


def publish(state_dir: Path, running: Running) -> None:
    """Says how to reach the VCH; for the holder of the directory alone."""
    new = state_dir / f"{_RUN}.new"
    data = asdict(running) | {"vsphere": running.vsphere.as_json() if running.vsphere else None}
    new.write_text(json.dumps(data, indent=1))
    new.replace(state_dir / _RUN)


def read(state_dir: Path) -> Running | None:
    """The VCH that serves on this state directory, None when none does."""
    pid = holder(state_dir)
    last = read_last(state_dir)
    return last if last and last.pid == pid else None


def read_last(state_dir: Path) -> Running | None:
    """The VCH that served last on this state directory, whether or not it still does."""
    try:
        data = json.loads((state_dir / _RUN).read_bytes())
        data["hosts"] = tuple(data["hosts"])
        data["portlayer_arguments"] = tuple(data["portlayer_arguments"])
        data["vsphere"] = Vsphere.from_json(data["vsphere"]) if data.get("vsphere") else None
        return Running(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def has_machines(state_dir: Path) -> bool:
    """Whether the port layer left containers there."""
    try:
        return any((state_dir / "machines").iterdir())
    except OSError:
        return False


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Whether the process ended within the time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)
