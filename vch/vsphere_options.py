"""Options of `vch` for a VCH on vSphere.

What was said is kept with the state of the VCH, so that the next `vch up`, `vch doctor` and `vch down --force` need not
be told again: all but the password, of which only the file is known that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from vch.errors import ConfigurationError

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
# Names and what click is told of them, in the order of --help.
_ACCESS: Final[dict[str, dict[str, Any]]] = {
    "--target": {"metavar": "USER@HOST[:PORT]", "help": "vCenter or ESXi to run containers on, instead of QEMU"},
    "--ca": {"type": _FILE, "help": "CA that its certificate is checked by  [default: the system's]"},
    "--thumbprint": {"help": "SHA-256 thumbprint of its certificate, instead of a CA"},
    "--password-file": {"type": _FILE, "help": "File with the password  [or $VCH_PASSWORD, or a prompt]"},
}
_PLACES: Final[dict[str, dict[str, Any]]] = {
    "--compute-resource": {"metavar": "NAME|PATH", "help": "Cluster, host or resource pool for the VMs"},
    "--datastore": {"metavar": "NAME|PATH", "help": "Datastore of the VMs"},
    "--image-datastore": {"metavar": "NAME|PATH", "help": "Datastore of the images  [default: the VMs']"},
    "--bridge-network": {"metavar": "NAME|PATH", "help": "Port group of the bridge network"},
    "--container-network": {"multiple": True, "metavar": "NAME:PORTGROUP", "help": "Port group for containers"},
    "--cpu-limit": {"metavar": "SIZE", "help": "Of all VMs together: 8GHz, 8000MHz or unlimited"},
    "--cpu-reservation": {"metavar": "SIZE", "help": "Of all VMs together: 1GHz"},
    "--memory-limit": {"metavar": "SIZE", "help": "Of all VMs together: 64g or unlimited"},
    "--memory-reservation": {"metavar": "SIZE", "help": "Of all VMs together: 8g"},
    "--shares": {"metavar": "LEVEL", "help": "Of the VMs' pool: low, normal, high, or CPU:MEMORY in numbers"},
    "--affinity-group/--no-affinity-group": {"default": None, "help": "Keep the VMs in a DRS group of VMs"},
    "--vm-name-template": {"metavar": "TEXT", "help": "Names of VMs  [default: {name}-{id}]"},
    "--serial-listen": {"metavar": "HOST:PORT", "help": "For the serial ports of VMs  [default: 0.0.0.0:2377]"},
    "--serial-address": {"metavar": "HOST[:PORT]", "help": "Where ESXi hosts reach it  [default: found out]"},
    "--serial-tls-cert": {"type": _FILE, "help": "Certificate for the serial ports: they use TLS then"},
    "--serial-tls-key": {"type": _FILE, "help": "Its private key"},
}
NAMES: Final = tuple(flag.partition("/")[0].removeprefix("--").replace("-", "_") for flag in (*_ACCESS, *_PLACES))


@dataclass(frozen=True)
class Vsphere:
    """What was said, as a tuple of names of options and values."""

    said: tuple[tuple[str, str | bool | tuple[str, ...]], ...]

    @property
    def target(self) -> str:
        return str(dict(self.said)["target"])

    @property
    def password_file(self) -> Path | None:
        file = dict(self.said).get("password_file")
        return Path(str(file)) if file else None

    def options(self) -> dict[str, Any]:
        """By their names with underscores."""
        return dict(self.said)

    def arguments(self) -> list[str]:
        """Of the port layer. No password, and not where it is from."""
        arguments = []
        for name, value in self.said:
            option = f"--{name.replace('_', '-')}"
            if name == "password_file":
                continue
            if isinstance(value, bool):
                arguments.append(option if value else option.replace("--", "--no-", 1))
            else:
                for one in (value,) if isinstance(value, str) else value:
                    arguments += [option, one]
        return arguments

    def as_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.said}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vsphere:
        """ValueError or TypeError when it is none."""
        return cls._of({name: data[name] for name in data if name in NAMES and data[name] is not None})

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Vsphere:
        if not values.get("target"):
            raise ValueError("no target")
        return cls(tuple((name, _plain(values[name])) for name in NAMES if name in values))


def vsphere_options(command: Any) -> Any:
    """Decorates a command with all of them."""
    for flag, attributes in reversed((_ACCESS | _PLACES).items()):
        command = click.option(flag, **attributes)(command)
    return command


def password_file_option(command: Any) -> Any:
    """Decorates a command that needs only the password."""
    return click.option("--password-file", **_ACCESS["--password-file"])(command)


def chosen(options: dict[str, Any], last: Vsphere | None) -> Vsphere | None:
    """What is meant by the options, which are taken out of `options`; None for a VCH on QEMU.

    With --target everything is said anew. Without it, what was said last holds, changed by what is said now.
    """
    said = {name: options.pop(name) for name in NAMES}
    said = {name: value for name, value in said.items() if value not in (None, ())}
    if "target" not in said:
        if last is None:
            if said:
                raise ConfigurationError(f"--{next(iter(said)).replace('_', '-')} is of use with --target only")
            return None
        if "ca" in said or "thumbprint" in said:  # one stands for the other
            last = Vsphere(tuple((name, value) for name, value in last.said if name not in ("ca", "thumbprint")))
        said = {**last.options(), **said}
    return Vsphere._of(said)


def _plain(value: Any) -> str | bool | tuple[str, ...]:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Path):
        return str(value.absolute())
    return tuple(str(one) for one in value)
