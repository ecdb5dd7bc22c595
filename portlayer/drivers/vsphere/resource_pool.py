"""The VCH's resource pool: made, found again, sized, removed."""

from __future__ import annotations

import contextlib
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import UNLIMITED, PoolLimits, Shares
from portlayer.errors import AlreadyExistsError, NotFoundError

_MIB = 1 << 20


async def ensure(session: Session, parent: Any, name: str, limits: PoolLimits) -> Any:
    """The pool of that name in `parent`, made when there is none, with these limits.

    What `limits` leaves open is as an administrator set it; in a new pool: nothing reserved, nothing limited.
    """
    pool = await find(session, parent, name)
    if pool is None:
        spec = _spec(limits, unlimited(), unlimited())
        what = f"making the resource pool {name}"
        try:
            return await session.call(parent.CreateResourcePool, name, spec, what=what)
        except AlreadyExistsError as error:  # an answer to the same call was lost
            if not caused_by(error, vim.fault.DuplicateName):
                raise
            pool = await find(session, parent, name)
            if pool is None:
                raise
    if limits.any:
        await _resize(session, pool, name, limits)
    return pool


async def find(session: Session, parent: Any, name: str) -> Any | None:
    """The pool of that name in `parent`."""
    children = (await session.read([parent], ["resourcePool"])).get(parent, {}).get("resourcePool", ())
    names = await session.read([pool for pool in children if not isinstance(pool, vim.VirtualApp)], ["name"])
    return next((pool for pool, known in names.items() if known.get("name") == name), None)


async def remove_if_empty(session: Session, pool: Any, name: str) -> bool:
    """Whether it is gone: it stays when there are VMs or pools in it. Their VMs would move up if it went."""
    found = (await session.read([pool], ["vm", "resourcePool"])).get(pool)
    if found is None:
        return True
    if found.get("vm") or found.get("resourcePool"):
        return False
    with contextlib.suppress(NotFoundError):
        await session.run(pool.Destroy_Task, what=f"removing the resource pool {name}")
    return True


def unlimited() -> vim.ResourceAllocationInfo:
    """All there is, nothing of it reserved."""
    return vim.ResourceAllocationInfo(
        limit=UNLIMITED,
        reservation=0,
        expandableReservation=True,
        shares=vim.SharesInfo(level=vim.SharesInfo.Level.normal, shares=0),
    )


async def _resize(session: Session, pool: Any, name: str, limits: PoolLimits) -> None:
    paths = ["config.cpuAllocation", "config.memoryAllocation"]
    found = (await session.read([pool], paths)).get(pool, {})
    cpu, memory = found.get(paths[0]) or unlimited(), found.get(paths[1]) or unlimited()
    before = (_facts(cpu), _facts(memory))
    spec = _spec(limits, cpu, memory)
    if (_facts(spec.cpuAllocation), _facts(spec.memoryAllocation)) != before:
        await session.call(pool.UpdateConfig, None, spec, what=f"setting the limits of the resource pool {name}")


def _spec(limits: PoolLimits, cpu: Any, memory: Any) -> vim.ResourceConfigSpec:
    shares = limits.shares
    return vim.ResourceConfigSpec(
        cpuAllocation=_allocation(
            cpu, limits.cpu_limit_mhz, limits.cpu_reservation_mhz, shares, shares.cpu if shares else 0
        ),
        memoryAllocation=_allocation(
            memory,
            _mib(limits.memory_limit_bytes),
            _mib(limits.memory_reservation_bytes),
            shares,
            shares.memory if shares else 0,
        ),
    )


def _allocation(
    before: Any, limit: int | None, reservation: int | None, shares: Shares | None, number: int
) -> vim.ResourceAllocationInfo:
    chosen = before.shares
    if shares is not None:
        # With a level, the number is vSphere's affair, but has to be there.
        chosen = vim.SharesInfo(level=shares.level, shares=number)
    return vim.ResourceAllocationInfo(
        limit=before.limit if limit is None else limit,
        reservation=before.reservation if reservation is None else reservation,
        expandableReservation=before.expandableReservation,
        shares=chosen,
    )


def _facts(allocation: Any) -> tuple[Any, ...]:
    """What makes two allocations the same."""
    shares = allocation.shares
    level = None if shares is None else str(shares.level)
    number = shares.shares if shares is not None and level == "custom" else None
    return allocation.limit, allocation.reservation, level, number


def _mib(size: int | None) -> int | None:
    return size if size is None or size == UNLIMITED else size // _MIB
