"""The embedded hypervisor: every container is a local QEMU process, found again by its machine's directory."""

from portlayer.drivers.qemu.datastore import LocalDatastore
from portlayer.drivers.qemu.driver import QemuDriver

__all__ = ["LocalDatastore", "QemuDriver"]
