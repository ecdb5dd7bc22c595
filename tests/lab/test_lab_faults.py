"""What is wrong with the lab itself shows, and leaves no VM hanging."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lab_esxi
import lab_machine
import pytest
from lab_calls import Caller
from lab_esxi import Lab
from lab_hardware import Hardware
from lab_inventory import Account
from lab_machine import ON, LabMachine, Wanted
from vsphere_waiting import PATIENCE_S

HARDWARE = Hardware("one", "", "", 1, 64, efi=False, cdrom=None, buses=(), disks=(), nics=(), ports=())


class Broken:
    """An inventory without VMs that fails in a way that no simulator fails."""

    @classmethod
    async def open(cls, account: Account) -> Broken:
        return cls()

    async def changes(self) -> AsyncIterator[set[str]]:
        yield set()
        raise KeyError("a property that is always there")

    async def machines(self) -> Mapping[str, Any]:
        return {}

    async def datastores(self) -> Mapping[str, Path]:
        return {}

    async def close(self) -> None:
        pass


async def test_what_the_lab_dies_of_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_esxi, "Inventory", Broken)
    lab = Lab(Account("", 0, "", ""), Caller().dial_as)
    with pytest.raises(KeyError, match="always there"):
        async with lab, asyncio.timeout(PATIENCE_S):
            assert lab._task is not None
            await asyncio.wait([lab._task])


async def test_a_fault_that_nobody_expected_powers_off_and_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reported = asyncio.Queue[None]()
    machine = LabMachine(tmp_path / "vm", Caller().dial_as, lambda moref: None, lambda: reported.put(None))

    def fail(hardware: Hardware) -> None:
        raise RuntimeError(f"with {hardware.memory_mb} MiB")

    monkeypatch.setattr(lab_machine, "prepare_disks", fail)
    wanted = Wanted(ON, None, "host-1", HARDWARE)
    for memory_mb in (64, 128):
        machine.want(replace(wanted, hardware=replace(HARDWARE, memory_mb=memory_mb)))
        async with asyncio.timeout(PATIENCE_S):
            await reported.get()
        assert f"RuntimeError: with {memory_mb} MiB" in caplog.text
    await machine.close()
