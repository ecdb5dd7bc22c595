"""What vSphere's event log says about the VMs of a VCH, as a source of Updates: words for people, with names in them.

What a VM *is* comes from its properties (`virtual_machines`); this adds who did it, from which host to which, which
alarm. Events are told once: the log is read again from the last one that was told when a session is over.

Two collectors are followed, by the types of their events. What only others bring about is in one, so that the VCH's own
work does not push it off the page; what the VCH does too is in the other, and told when the user is another one. So a
VCH should have an account of its own. Reconfigurations are not followed: each such event carries the whole change, the
container's record in it, and the VCH makes several for each start.

Facts: vSphere Web Services API, EventHistoryCollector (the latest page is in no order) and the types of events;
`com.vmware.vc.ha.VmRestartedByHAEvent` is what vCenter has had instead of VmRestartedOnAlternateHostEvent since 5.0.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pyVmomi import vim, vmodl

from portlayer.drivers.base import Change
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

# Events of a collector that vSphere shows at a time. The whole page comes with each new one, at half a millisecond of
# CPU time for each event, and every power-on and -off of the VCH's own is a new one: so that page is short. In a crowd
# of those, what somebody else switched may be told without who it was.
PAGE = 32
DEEDS_PAGE = 4
# Characters; what is longer is cut.
MAX_NAME = 200
MAX_MESSAGE = 1000
_LATEST = "latestPage"
# More than both pages hold, and what was on them before.
_MAX_TOLD = 8 * PAGE
# What others alone bring about.
_HAPPENINGS = {
    "VmMigratedEvent": Change.MIGRATED,
    "DrsVmMigratedEvent": Change.MIGRATED,
    "VmRelocatedEvent": Change.MIGRATED,
    "VmResettingEvent": Change.SWITCHED,
    "VmRestartedOnAlternateHostEvent": Change.FAILED_OVER,
    "com.vmware.vc.ha.VmRestartedByHAEvent": Change.FAILED_OVER,
    "VmFailoverFailed": Change.FAILED_OVER,
    "VmDasBeingResetEvent": Change.FAILED_OVER,
    "VmDasBeingResetWithScreenshotEvent": Change.FAILED_OVER,
    "VmDasResetFailedEvent": Change.FAILED_OVER,
    "VmMessageEvent": Change.QUESTION,
    "AlarmStatusChangedEvent": Change.ALARM,
}
# What this VCH does as well.
_DEEDS = {
    "VmPoweredOnEvent": Change.SWITCHED,
    "DrsVmPoweredOnEvent": Change.SWITCHED,
    "VmPoweredOffEvent": Change.SWITCHED,
    "VmSuspendedEvent": Change.SWITCHED,
    "VmRenamedEvent": Change.RENAMED,
}
_OPERATIONS = {
    "VmPoweredOnEvent": "power on",
    "DrsVmPoweredOnEvent": "power on",
    "VmPoweredOffEvent": "power off",
    "VmSuspendedEvent": "suspend",
    "VmResettingEvent": "reset",
}
# Users that are nobody: a guest that switches itself off, a host on its own.
_NOBODY = {"", "User"}
# Not to be had by this account, or there: ESXi and older vCenters say in several ways that they do not know a filter.
_DENIED = (
    vim.fault.NoPermission,
    vim.fault.InvalidState,
    vmodl.fault.InvalidArgument,
    vmodl.fault.InvalidRequest,
    vmodl.fault.NotSupported,
    vmodl.fault.NotImplemented,
)
_Collector = vmodl.query.PropertyCollector
_Filter = vim.event.EventFilterSpec
_log = logging.getLogger(__name__)

# Told of each event: which VM, what it means, and words about it.
OnEvent = Callable[[Any, Change, Mapping[str, str]], None]


class EventLog:
    """A source of Updates: the events of VMs below `scope`, from the session's beginning on."""

    def __init__(self, scope: vim.ManagedEntity, on_event: OnEvent) -> None:
        self._scope = scope
        self._on_event = on_event
        self._own_user = ""
        # Of the last event that was told; by the server's clock.
        self._since: datetime | None = None
        self._told: dict[tuple[int, datetime], None] = {}
        self._found: list[Any] = []
        self._collectors: list[Any] = []

    async def begin(self, session: Session) -> Any:
        """None, and a line in the log, where the account may not see events."""
        current = session.account
        self._own_user = str(current.userName)
        self._since = min(self._since or current.loginTime, current.loginTime)
        try:
            await self._renew(session)
        except PortLayerError as error:
            if not caused_by(error, *_DENIED) or caused_by(error, vim.fault.NotAuthenticated):
                raise
            _log.warning("events of vSphere are not told until there is a new session: %s", error)
            return None
        return _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=vim.event.EventHistoryCollector, pathSet=[_LATEST])],
            objectSet=[_Collector.ObjectSpec(obj=collector) for collector in self._collectors],
        )

    def apply(self, update: Any) -> None:
        for change in update.changeSet or ():
            if str(change.name).startswith(_LATEST) and change.val is not None:
                page = change.val if isinstance(change.val, list) else [change.val]
                if self._told and len(page) >= PAGE and not any(_identity(event) in self._told for event in page):
                    _log.info("vSphere's events come faster than they are read: some are not told")
                self._found += page

    def complete(self) -> None:
        found, self._found = self._found, []
        news = {_identity(event): event for event in found if _identity(event) not in self._told}
        for identity, event in sorted(news.items(), key=lambda item: (item[1].createdTime, item[1].key)):
            self._told[identity] = None
            self._since = event.createdTime
            self._tell(event)
        for identity in list(self._told)[:-_MAX_TOLD]:
            del self._told[identity]

    async def close(self, session: Session) -> None:
        """Lets go of the collectors: a session may have a limited number of them (by default 32)."""
        old, self._collectors = self._collectors, []
        for collector in old:
            with contextlib.suppress(PortLayerError):  # it went with its session
                await session.call(collector.DestroyCollector, what="letting go of events")

    async def _renew(self, session: Session) -> None:
        await self.close(session)
        for types, page in ((_HAPPENINGS, PAGE), (_DEEDS, DEEDS_PAGE)):
            spec = _Filter(
                entity=_Filter.ByEntity(entity=self._scope, recursion=_Filter.RecursionOption.all),
                time=_Filter.ByTime(beginTime=self._since),
                eventTypeId=list(types),
            )
            create = session.content.eventManager.CreateCollectorForEvents
            collector = await session.call(create, spec, what="following events")
            self._collectors.append(collector)
            await session.call(collector.SetCollectorPageSize, page, what="following events")

    def _tell(self, event: Any) -> None:
        kind, vm, user = _kind(event), _vm(event), str(event.userName or "")
        change = _HAPPENINGS.get(kind)
        if change is None and user not in (_NOBODY | {self._own_user}):
            change = _DEEDS.get(kind)
        if change is not None and vm is not None:
            self._on_event(vm, change, _words(event, kind, user))


def _identity(event: Any) -> tuple[int, datetime]:
    """Keys alone are given out anew by a host that was booted, or a vCenter from a backup."""
    return int(event.key), event.createdTime


def _kind(event: Any) -> str:
    if isinstance(event, vim.event.EventEx):
        return str(event.eventTypeId)
    return type(event).__name__.rpartition(".")[2]


def _vm(event: Any) -> Any | None:
    """The VM that it is about."""
    if event.vm is not None:
        return event.vm.vm
    if isinstance(event, vim.event.EventEx) and event.objectType is vim.VirtualMachine and event.objectId:
        return vim.VirtualMachine(event.objectId)
    entity = getattr(event, "entity", None)  # of an alarm
    of = getattr(entity, "entity", None)
    return of if isinstance(of, vim.VirtualMachine) else None


def _words(event: Any, kind: str, user: str) -> dict[str, str]:
    """Names and states, and the sentence that vSphere makes of them; what it does not say is left out."""
    named = {
        "host": event.host,
        "datacenter": event.datacenter,
        "sourceHost": getattr(event, "sourceHost", None),
        "alarm": getattr(event, "alarm", None),
    }
    said = {name: getattr(thing, "name", None) for name, thing in named.items()}
    said |= {name: getattr(event, name, None) for name in ("from", "to", "oldName", "newName")}
    said |= {"event": kind, "operation": _OPERATIONS.get(kind), "user": user if user not in _NOBODY else None}
    words = {name: plain(text, MAX_NAME) for name, text in said.items() if text}
    if message := plain(_message(event), MAX_MESSAGE):
        words["message"] = message
    return words


def _message(event: Any) -> str:
    candidates: Iterable[Any] = (event.fullFormattedMessage, getattr(event, "message", None))
    return next((str(text) for text in candidates if text), "")


def plain(text: Any, most: int) -> str:
    """On one line, without control characters."""
    line = " ".join(str(text).split())
    return "".join(letter for letter in line if letter.isprintable())[:most]
