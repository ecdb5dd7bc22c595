"""Options of the port layer for vSphere, the same as those of `vch up`. The password comes by a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from portlayer.drivers.vsphere import settings
from portlayer.drivers.vsphere.settings import VsphereSettings
from portlayer.errors import InvalidArgumentError

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
# In the order of --help.
_OPTIONS: Final[tuple[Callable[[Any], Any], ...]] = (
    click.option("--target", metavar="USER@HOST[:PORT]", help="vCenter or ESXi; without it, machines are on QEMU."),
    click.option("--ca", type=_FILE, help="CA that its certificate is checked by."),
    click.option("--thumbprint", help="SHA-256 thumbprint of its certificate, instead."),
    click.option("--password-fd", type=int, help="Descriptor that the password is read from, to its end."),
    click.option("--compute-resource", help="Cluster, host or resource pool."),
    click.option("--datastore", help="Datastore of the VMs."),
    click.option("--image-datastore", help="Datastore of the images."),
    click.option("--bridge-network", help="Port group of the bridge network."),
    click.option("--container-network", multiple=True, metavar="NAME:PORTGROUP", help="Port group for containers."),
    click.option("--cpu-limit", help="Limit of all VMs together, as 8GHz, or unlimited."),
    click.option("--cpu-reservation", help="Reserved for all VMs together, as 1GHz."),
    click.option("--memory-limit", help="Limit of all VMs together, as 64g, or unlimited."),
    click.option("--memory-reservation", help="Reserved for all VMs together, as 8g."),
    click.option("--shares", help="low, normal, high, or CPU:MEMORY in numbers."),
    click.option("--affinity-group/--no-affinity-group", default=None, help="Keep the VMs in a VM group of DRS."),
    click.option("--vm-name-template", help="Names of VMs, of {name} and {id}."),
    click.option("--serial-listen", metavar="HOST:PORT", help="Where the concentrator listens."),
    click.option("--serial-address", metavar="HOST[:PORT]", help="Where hosts reach it."),
    click.option("--serial-tls-cert", type=_FILE, help="Certificate of the concentrator."),
    click.option("--serial-tls-key", type=_FILE, help="Its private key."),
)


def vsphere_options(command: Any) -> Any:
    """Decorates a command with all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(options: Mapping[str, Any]) -> VsphereSettings | None:
    """None without --target. Reads the password. InvalidArgumentError for what makes no sense."""
    if not options.get("target"):
        said = [name.replace("_", "-") for name, value in options.items() if value not in (None, ())]
        if said:
            raise InvalidArgumentError(f"--{said[0]} is of use with --target only")
        return None
    if options.get("password_fd") is None:
        raise InvalidArgumentError("--target needs --password-fd")
    return settings.from_options(options, _read_password(options["password_fd"]))


def _read_password(descriptor: int) -> str:
    try:
        with os.fdopen(descriptor, "rb") as pipe:
            data = pipe.read(settings.MAX_PASSWORD_BYTES + 1)
        password = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"no password comes from descriptor {descriptor}") from error
    if not password or len(data) > settings.MAX_PASSWORD_BYTES:
        raise InvalidArgumentError("the password is empty or too long")
    return password
