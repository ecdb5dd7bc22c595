"""What one VCH is run with: names, places and sizes; their defaults follow the XDG base directories."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vch.errors import ConfigurationError
from vch.vsphere_options import Vsphere

# sockaddr_un has room for 108 bytes, the last of them a zero.
MAX_SOCKET_PATH = 107
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_UNIX = "unix://"


@dataclass(frozen=True)
class Tls:
    """Files for mutual TLS on TCP."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Settings:
    """Everything `vch up` needs, checked."""

    name: str
    state_dir: Path
    hosts: tuple[str, ...]
    grpc: str
    guest_image: Path
    default_memory: str | None = None
    default_cpus: int | None = None
    accelerator: str | None = None
    channel: str | None = None
    clone: bool = True
    pool: int | None = None
    pool_memory: str | None = None
    tls: Tls | None = None
    log_level: str = "info"
    vsphere: Vsphere | None = None

    def portlayer_arguments(self) -> list[str]:
        """Arguments of portlayer.main."""
        arguments = ["--state-dir", str(self.state_dir), "--grpc", self.grpc, "--guest-image", str(self.guest_image)]
        arguments += ["--name", self.name, "--log-level", self.log_level]
        if self.default_memory:
            arguments += ["--default-memory", self.default_memory]
        if self.default_cpus:
            arguments += ["--default-cpus", str(self.default_cpus)]
        if self.accelerator:
            arguments += ["--accelerator", self.accelerator]
        if self.channel:
            arguments += ["--channel", self.channel]
        if not self.clone:
            arguments += ["--no-clone"]
        if self.pool is not None:  # 0 is a choice too
            arguments += ["--pool", str(self.pool)]
        if self.pool_memory:
            arguments += ["--pool-memory", self.pool_memory]
        if self.vsphere:
            arguments += self.vsphere.arguments()
        return arguments

    def personality_arguments(self) -> list[str]:
        """Arguments of personality.main."""
        return ["--grpc", self.grpc, "--log-level", self.log_level, *self._host_arguments()]

    def up_arguments(self) -> list[str]:
        """Options of `vch up` that say all of this but the password."""
        file = self.vsphere.password_file if self.vsphere else None
        remembered = ["--password-file", str(file)] if file else []
        return [*self.portlayer_arguments(), *self._host_arguments(), *remembered]

    def _host_arguments(self) -> list[str]:
        arguments = [word for host in self.hosts for word in ("--host", host)]
        if self.tls:
            arguments += ["--tlscacert", str(self.tls.ca)]
            arguments += ["--tlscert", str(self.tls.certificate), "--tlskey", str(self.tls.key)]
        return arguments


def default_state_dir(name: str) -> Path:
    """Where a VCH of this name keeps its state unless told otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name: letters, digits, '_', '.' and '-', at most 63")
    return _xdg("XDG_STATE_HOME", ".local/state") / "vch" / name


def default_socket(name: str, state_dir: Path, socket: str) -> str:
    """Sockets go to the user's runtime directory, or into the state directory where there is none.

    A state directory of the user's own choice keeps its sockets, so that two VCHs never meet in one path.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and state_dir == default_state_dir(name) and Path(runtime).is_dir():
        return f"{_UNIX}{Path(runtime) / 'vch' / name / socket}"
    return f"{_UNIX}{state_dir / socket}"


def default_guest_image() -> Path:
    """$VCH_GUEST_IMAGE, else what `make image` built in this checkout, else the installed one."""
    if chosen := os.environ.get("VCH_GUEST_IMAGE"):
        return Path(chosen).absolute()
    built = Path(__file__).resolve().parent.parent / "build" / "photon-image"
    return built if built.is_dir() else Path("/usr/local/share/vch/photon-image")


def unix_path(address: str) -> Path | None:
    """The path of a unix:// address; None for any other."""
    return Path(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None


def check_addresses(grpc: str, hosts: Iterable[str], tls: Tls | None) -> None:
    """Raises ConfigurationError for an address that cannot be served."""
    if unix_path(grpc) is None:
        raise ConfigurationError(f"--grpc {grpc}: only unix:// is served; permissions of the socket guard it")
    hosts = list(hosts)
    for address in (grpc, *hosts):
        path = unix_path(address)
        if path is None:
            _check_tcp(address, tls)
        elif not path.is_absolute():
            raise ConfigurationError(f"{address}: the path must be absolute, unix:///run/vch.sock")
        elif len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ConfigurationError(f"{address}: longer than {MAX_SOCKET_PATH} bytes; choose a shorter path")
    if len({grpc, *hosts}) != 1 + len(hosts):
        raise ConfigurationError("--grpc and each --host need an address of their own")


def _check_tcp(address: str, tls: Tls | None) -> None:
    if not re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):\d{1,5}", address):
        raise ConfigurationError(f"{address}: neither unix://PATH nor tcp://ADDRESS:PORT")
    if tls is None:
        raise ConfigurationError(f"{address}: TCP needs --tlscacert, --tlscert and --tlskey")


def make_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """All three files or none."""
    if ca is None and certificate is None and key is None:
        return None
    if ca is None or certificate is None or key is None:
        raise ConfigurationError("--tlscacert, --tlscert and --tlskey belong together")
    return Tls(ca.absolute(), certificate.absolute(), key.absolute())


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / fallback
