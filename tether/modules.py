"""Kernel modules for the machine that the agent finds itself in, as photon-image/tree.py lists them.

/etc/platform.NAME has the PCI vendor that tells a platform; /etc/modules.WHAT lists what every machine needs for WHAT,
/etc/modules.WHAT.NAME what one platform needs for it.
"""

from __future__ import annotations

import errno
from pathlib import Path

from tether import linux

_ETC = Path("/etc")
_MODULES = Path("/lib/modules")
_PCI_DEVICES = Path("/sys/bus/pci/devices")


def platforms() -> list[str]:
    """Names of the image's platforms that this machine has devices of."""
    vendors = {file.read_text() for file in _PCI_DEVICES.glob("*/vendor")}
    known = sorted(_ETC.glob("platform.*"))
    return [file.name.removeprefix("platform.") for file in known if file.read_text() in vendors]


def load(what: str) -> None:
    """Loads what every machine needs, in order. Raises OSError."""
    for path in _listed(what):
        linux.load_module(path)


def load_for(what: str, names: list[str]) -> None:
    """Loads what these platforms need, in order; a driver that finds no hardware is left. Raises OSError."""
    for name in names:
        for path in _listed(f"{what}.{name}"):
            try:
                linux.load_module(path)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise


def _listed(kind: str) -> list[str]:
    lines = (_ETC / f"modules.{kind}").read_text().splitlines()
    return [str(_MODULES / line) for line in lines if line]
