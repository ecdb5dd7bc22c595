"""What VMs of every kind have from the driver that they belong to."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pyVmomi import vim

from portlayer.drivers.base import DiskNames, MachineSpec, MachineUsage, PowerState
from portlayer.drivers.vsphere import config_spec
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.drivers.vsphere.serial import Concentrator
from portlayer.drivers.vsphere.session import Session

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.machine import VsphereMachine


class Surroundings(Protocol):
    """For all of them."""

    @property
    def session(self) -> Session: ...

    @property
    def lines(self) -> Concentrator: ...

    @property
    def proxy_uri(self) -> str:
        """Where serial ports dial now."""

    async def boot(self) -> Boot:
        """What VMs boot from and dial now."""

    async def power_on(self, vm: Any, name: str) -> None:
        """Powers a VM on, where DRS wants it if there is DRS. No effect when it is on."""

    async def remove(self, vm: Any, name: str) -> None:
        """Powers a VM off and removes it with all that is its own. No effect when it is gone."""

    async def wait_off(self, vm: Any) -> None:
        """Returns when a VM is off or gone."""


class MachineSurroundings(Surroundings, Protocol):
    """For containers' VMs."""

    async def power_state(self, vm: Any, name: str) -> PowerState:
        """NotFoundError when the VM is gone."""

    async def usage(self, vm: Any) -> MachineUsage | None:
        """As Machine's."""

    def was_moved(self, vm: Any) -> bool:
        """Whether an administrator has moved a VM to another folder than it was made in."""

    def is_now_of(self, machine: VsphereMachine, before: Any) -> None:
        """The machine's VM is another one than before."""

    async def image_disk(self, name: str) -> config_spec.Parent:
        """The disk of an image."""

    def card_backings(self, networks: Sequence[str]) -> tuple[Any, ...]:
        """What network cards on these networks are backed by. NotFoundError when one of them is not there any more."""

    def described(self, spec: MachineSpec) -> vim.vm.ConfigSpec:
        """What people are told of a container's VM: annotation, managedBy."""

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Does what nobody waits for."""


class CloningSurroundings(Surroundings, Protocol):
    """For templates and clones."""

    @property
    def disk_names(self) -> DiskNames: ...

    def hardware(self, boot: Boot, token: str) -> config_spec.Hardware:
        """Of a VM without disks and cards."""

    async def make(self, config: vim.vm.ConfigSpec, what: str) -> Any:
        """A new VM of that name and instanceUuid, made once however often it takes."""

    def clone_location(self) -> vim.vm.RelocateSpec:
        """Where clones go."""

    def into_group(self, vm: Any) -> None:
        """Puts a VM into the affinity group, if there is one."""
