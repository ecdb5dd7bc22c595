"""What every container of a VCH shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portlayer.drivers.base import MachineDriver
from portlayer.events import EventHub
from portlayer.execution.tasks import Tasks
from portlayer.metrics import Metrics

if TYPE_CHECKING:  # which needs this package
    from portlayer.instantclone import InstantClones


@dataclass(frozen=True)
class Host:
    """See the module's docstring."""

    driver: MachineDriver
    events: EventHub
    tasks: Tasks
    clones: InstantClones
    metrics: Metrics
