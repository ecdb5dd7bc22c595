"""What a VCH on vSphere is told: where vSphere is, who logs in, where things go and how much they may take.

Made from the options of the command line, which are the same for `vch up`, `vch doctor` and the port layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Final

from portlayer.config import parse_size
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.errors import InvalidArgumentError

DEFAULT_NAME_TEMPLATE: Final = "{name}-{id}"
DEFAULT_SERIAL_PORT: Final = 2377
UNLIMITED: Final = -1
MAX_PASSWORD_BYTES: Final = 4096
LEVELS: Final = ("low", "normal", "high")
_HTTPS: Final = 443
_MHZ: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([mg])?(?:hz)?", re.IGNORECASE)
_HOST: Final = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.%a-z]+)\](?::(?P<p6>\d+))?|(?P<name>[^:\[\]/\s]+)(?::(?P<port>\d+))?")
_NETWORK: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@dataclass(frozen=True)
class Shares:
    """A level, or numbers of one's own for both CPU and memory (level "custom")."""

    level: str
    cpu: int = 0
    memory: int = 0


@dataclass(frozen=True)
class PoolLimits:
    """What the VCH's resource pool may take. None: left as it is in vSphere. `UNLIMITED` takes a limit away."""

    cpu_limit_mhz: int | None = None
    cpu_reservation_mhz: int | None = None
    memory_limit_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    shares: Shares | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self != PoolLimits()


@dataclass(frozen=True)
class SerialSettings:
    """Where VMs reach the concentrator.

    `advertised_host` is what VMs are told to dial; None: the address of this machine that faces vSphere.
    `certificate` and `key`, in PEM, turn TLS on.
    """

    listen_host: str = "0.0.0.0"
    listen_port: int = DEFAULT_SERIAL_PORT
    advertised_host: str | None = None
    advertised_port: int | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class VsphereSettings:
    """Names are as Inventory understands them; None: the only one there is, or the datastore of the containers."""

    endpoint: Endpoint
    credentials: Credentials
    compute_resource: str | None = None
    datastore: str | None = None
    image_datastore: str | None = None
    bridge_network: str | None = None
    # The name that users say, and the port group.
    container_networks: tuple[tuple[str, str], ...] = ()
    limits: PoolLimits = field(default_factory=PoolLimits)
    affinity_group: bool = False
    vm_name_template: str = DEFAULT_NAME_TEMPLATE
    serial: SerialSettings = field(default_factory=SerialSettings)


def from_options(options: Mapping[str, Any], password: str) -> VsphereSettings:
    """Settings from the options of a command line, by their names with underscores; unset ones are None or missing.

    InvalidArgumentError, which names the option, for what makes no sense.
    """
    user, endpoint = parse_target(str(options["target"]), options.get("ca"), options.get("thumbprint"))
    template = options.get("vm_name_template") or DEFAULT_NAME_TEMPLATE
    check_name_template(template)
    return VsphereSettings(
        endpoint=endpoint,
        credentials=Credentials(user, password),
        compute_resource=options.get("compute_resource") or None,
        datastore=options.get("datastore") or None,
        image_datastore=options.get("image_datastore") or None,
        bridge_network=options.get("bridge_network") or None,
        container_networks=parse_networks(options.get("container_network") or ()),
        limits=_limits(options),
        affinity_group=bool(options.get("affinity_group")),
        vm_name_template=template,
        serial=_serial(options),
    )


def parse_target(target: str, ca_file: Path | None, thumbprint: str | None) -> tuple[str, Endpoint]:
    """User and endpoint of USER@HOST[:PORT]. A user's name may have an @, as those of vCenter do."""
    user, at, where = target.removeprefix("https://").rpartition("@")
    if not at or not user:
        raise InvalidArgumentError(f"--target {target!r}: write it as USER@HOST or USER@HOST:PORT")
    if ":" in user:
        raise InvalidArgumentError("--target: no password there, where others can read it; see --password-file")
    if ca_file is not None and thumbprint is not None:
        raise InvalidArgumentError("--ca and --thumbprint: one of them says which certificate is trusted")
    host, port = _host_port("--target", where)
    return user, Endpoint(host, port or _HTTPS, Path(ca_file) if ca_file else None, thumbprint or None)


def parse_networks(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs out of NAME:PORTGROUP; a port group alone lends its own name."""
    networks: dict[str, str] = {}
    for text in texts:
        name, colon, group = text.partition(":")
        name, group = name.strip(), (group if colon else name).strip()
        if not _NETWORK.fullmatch(name) or not group:
            raise InvalidArgumentError(f"--container-network {text!r}: write it as NAME:PORTGROUP, as in web:VLAN 7")
        if name in networks or name in ("bridge", "host", "none", "default"):
            raise InvalidArgumentError(f"--container-network {text!r}: the name {name!r} is taken")
        networks[name] = group
    return tuple(networks.items())


def parse_mhz(text: str) -> int:
    """MHz of "4000", "4000MHz", "2.5GHz". InvalidArgumentError for others."""
    match = _MHZ.fullmatch(text.strip())
    if match is None:
        raise InvalidArgumentError(f"{text!r} is no amount of CPU: write it as 4000MHz or 2.5GHz")
    return int(float(match[1]) * (1000 if (match[2] or "m").lower() == "g" else 1))


def parse_shares(text: str) -> Shares:
    """A level, or CPU:MEMORY in numbers."""
    if text in LEVELS:
        return Shares(text)
    if match := re.fullmatch(r"(\d{1,6}):(\d{1,7})", text):
        return Shares("custom", int(match[1]), int(match[2]))
    raise InvalidArgumentError(f"--shares {text!r}: low, normal, high, or numbers as CPU:MEMORY")


def check_name_template(template: str) -> None:
    """InvalidArgumentError unless every VM gets a name of its own by it."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        template.format(name="n", id="i")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise InvalidArgumentError(f"--vm-name-template {template!r}: only {{name}} and {{id}} are known") from error
    if set(fields) - {"name", "id"}:
        raise InvalidArgumentError(f"--vm-name-template {template!r}: only {{name}} and {{id}} are known")
    if "id" not in fields:
        raise InvalidArgumentError(f"--vm-name-template {template!r}: without {{id}}, names of VMs would meet")
    if len(template.format(name="", id="0" * 12)) > 60:
        raise InvalidArgumentError(f"--vm-name-template {template!r}: too long, a name has room for 80 letters")
    if any(letter in template for letter in "/\\%"):
        raise InvalidArgumentError(f"--vm-name-template {template!r}: names of VMs cannot have /, \\ or %")


def _limits(options: Mapping[str, Any]) -> PoolLimits:
    def amount(option: str, parse: Any, *, limit: bool) -> int | None:
        text = options.get(option)
        if not text:
            return None
        if limit and text == "unlimited":
            return UNLIMITED
        try:
            return int(parse(text))
        except (ValueError, InvalidArgumentError) as error:
            raise InvalidArgumentError(f"--{option.replace('_', '-')}: {error}") from error

    limits = PoolLimits(
        cpu_limit_mhz=amount("cpu_limit", parse_mhz, limit=True),
        cpu_reservation_mhz=amount("cpu_reservation", parse_mhz, limit=False),
        memory_limit_bytes=amount("memory_limit", parse_size, limit=True),
        memory_reservation_bytes=amount("memory_reservation", parse_size, limit=False),
        shares=parse_shares(options["shares"]) if options.get("shares") else None,
    )
    _check_within("cpu", limits.cpu_reservation_mhz, limits.cpu_limit_mhz)
    _check_within("memory", limits.memory_reservation_bytes, limits.memory_limit_bytes)
    return limits


def _check_within(what: str, reservation: int | None, limit: int | None) -> None:
    if reservation is not None and limit is not None and limit != UNLIMITED and reservation > limit:
        raise InvalidArgumentError(f"--{what}-reservation is more than --{what}-limit")


def _serial(options: Mapping[str, Any]) -> SerialSettings:
    listen = options.get("serial_listen") or f"0.0.0.0:{DEFAULT_SERIAL_PORT}"
    host, port = _host_port("--serial-listen", listen)
    told, told_port = (
        _host_port("--serial-address", options["serial_address"])
        if options.get("serial_address")
        else (
            None,
            None,
        )
    )
    certificate, key = options.get("serial_tls_cert"), options.get("serial_tls_key")
    if (certificate is None) != (key is None):
        raise InvalidArgumentError("--serial-tls-cert and --serial-tls-key belong together")
    return SerialSettings(
        listen_host=host,
        listen_port=DEFAULT_SERIAL_PORT if port is None else port,
        advertised_host=told,
        advertised_port=told_port,
        certificate=None if certificate is None else Path(certificate),
        key=None if key is None else Path(key),
    )


def _host_port(option: str, text: str) -> tuple[str, int | None]:
    match = _HOST.fullmatch(text.strip())
    port = None if match is None else match["p6"] or match["port"]
    if match is None or (port is not None and int(port) > 65535):
        raise InvalidArgumentError(f"{option} {text!r}: write it as HOST or HOST:PORT, IPv6 as [ADDRESS]:PORT")
    return match["v6"] or match["name"], None if port is None else int(port)
