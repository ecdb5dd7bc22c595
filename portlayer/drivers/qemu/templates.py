"""Templates on this host: implements Cloning and Template.

    templates/KEY/template.json   the shape, when and how fast it was made
                  state           of the devices, as QEMU migrates it
                  memory          of the guest, with holes
    templates/.new-KEY            being made, its QEMU working in it; swept by `open`
    templates/.trash-KEY...       being removed; swept by `open`
    clones/ID                     the working directory of a clone that is no container's yet; swept by `open`

KEY is a digest of all that a clone must share with its template, so what is out of date is simply not looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from portlayer.drivers.base import Clone, Parent, Shape, Template
from portlayer.drivers.qemu import command, files, process
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.drivers.qemu.failures import os_errors
from portlayer.drivers.qemu.guest import QemuClone, QemuParent
from portlayer.drivers.qemu.instance import Argv, Instance
from portlayer.drivers.qemu.memory import TemplateMemory
from portlayer.drivers.shapes import memory_of_template

_NEW, _TRASH = ".new-", ".trash-"
# Counts changes of what is in a template's directory, or of how it is made.
_FORMAT = 1
_ABOUT = "template.json"
_log = logging.getLogger(__name__)


class QemuTemplate:
    """Implements Template."""

    def __init__(self, directory: Path, shape: Shape, created_unix_ns: int, made_in_ns: int, home: QemuCloning) -> None:
        self._directory = directory
        self._shape = shape
        self._created_unix_ns = created_unix_ns
        self._made_in_ns = made_in_ns
        self._home = home
        self._memory: TemplateMemory | None = None
        self._loading = asyncio.Lock()

    @property
    def id(self) -> str:
        return self._directory.name

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def created_unix_ns(self) -> int:
        return self._created_unix_ns

    @property
    def made_in_ns(self) -> int:
        return self._made_in_ns

    @property
    def last_used_unix_ns(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / _ABOUT).stat().st_mtime_ns
        return self._created_unix_ns

    def note_use(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._directory / _ABOUT)

    @property
    def disk_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return sum(path.stat().st_blocks * 512 for path in self._directory.iterdir())
        return 0

    @property
    def resident_bytes(self) -> int:
        return self._memory.resident_bytes if self._memory else 0

    async def clone(self) -> Clone:
        with os_errors(f"cloning template {self.id[:12]}"):
            async with self._loading:
                if self._memory is None:
                    self._memory = await asyncio.to_thread(TemplateMemory.load, self._directory / "memory")
            with (self._directory / "state").open("rb") as state:
                return await self._home.clone(self._shape, self._memory, state.fileno())

    async def remove(self) -> None:
        await self._home.remove(self)
        self.close()

    def adopt_memory(self, memory: TemplateMemory) -> None:
        """The memory it was made in spares it to be read again."""
        self._memory = memory

    def close(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()


class QemuCloning:
    """Implements Cloning below `state_dir`; `host` and `identity` say what all templates depend on."""

    def __init__(
        self,
        state_dir: Path,
        empties: EmptyDisks,
        host: Callable[[], command.Host],
        identity: Callable[[], str],
    ) -> None:
        self._templates_dir = state_dir / "templates"
        self._clones_dir = state_dir / "clones"
        self._empties = empties
        self._host = host
        self._identity = identity
        self._templates: dict[str, QemuTemplate] = {}

    async def open(self) -> None:
        """Ends and removes what a crash left, and templates that no clone can be made of any more."""
        for root in (self._templates_dir, self._clones_dir):
            root.mkdir(mode=0o700, exist_ok=True)
            await process.end_all_below(root)
        await asyncio.to_thread(self._sweep)
        for path in sorted(self._templates_dir.iterdir()):
            template = self._read(path)
            if template is not None and template.id == self._key(template.shape):
                self._templates[template.id] = template
            else:
                _log.info("template %s is out of date: removing it", path.name[:12])
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def close(self) -> None:
        """Lets go of the memory of templates."""
        for template in self._templates.values():
            template.close()

    @property
    def rehearsals(self) -> tuple[int, int]:
        """In a template twice: the second shows how warm the first has left it, and what it still loads stays there."""
        return 2, 1

    @property
    def parents_freeze_themselves(self) -> bool:
        return False

    def shape_for(self, memory_bytes: int, cpus: int) -> Shape | None:
        """See memory_of_template. A size beyond the host's memory has no clones: their private mappings would be
        counted as if all of them were used.
        """
        size = memory_of_template(memory_bytes)
        return Shape(size, cpus) if size <= psutil.virtual_memory().total else None

    async def templates(self) -> list[Template]:
        return list(self._templates.values())

    async def boot_parent(self, shape: Shape) -> Parent:
        key = self._key(shape)
        directory = self._templates_dir / f"{_NEW}{key}"
        memory = TemplateMemory(shape.memory_bytes)
        instance = Instance(directory, f"template {key[:12]}")

        async def keep(state: Path, made_in_ns: int) -> Template:
            return await self._keep(key, shape, memory, state, made_in_ns)

        try:
            argv = self._argv(f"template-{key[:12]}", shape, memory, shared=True)
            await instance.start(argv, inherited=(memory.fd,))
        except BaseException:
            await instance.remove()
            memory.close()
            raise
        return QemuParent(instance, shape, self._empties, keep, memory.close)

    async def clone(self, shape: Shape, memory: TemplateMemory, state_fd: int) -> Clone:
        """A QEMU of its own with the template's state."""
        name = secrets.token_hex(8)
        instance = Instance(self._clones_dir / name, f"clone {name}")
        began = time.monotonic_ns()
        try:
            argv = self._argv(f"clone-{name}", shape, memory, shared=False)
            await instance.start(argv, inherited=(memory.fd, state_fd))
            started = time.monotonic_ns()
            await (await instance.control()).load_state(state_fd)
        except BaseException:
            await instance.remove()
            raise
        phases_ns = {"machine": started - began, "restore": time.monotonic_ns() - started}
        return QemuClone(instance, shape, self._empties, phases_ns)

    def _argv(self, name: str, shape: Shape, memory: TemplateMemory, *, shared: bool) -> Argv:
        def argv(qmp_fd: int, line: command.Line) -> list[str]:
            assert isinstance(line, command.SerialLine)
            of = command.MemoryFile(memory.fd, shared)
            return command.template_command(name, shape, self._host(), memory=of, qmp_fd=qmp_fd, line=line)

        return argv

    async def remove(self, template: QemuTemplate) -> None:
        self._templates.pop(template.id, None)
        with os_errors(f"removing template {template.id[:12]}"):
            await asyncio.to_thread(self._remove, template.id)

    async def _keep(self, key: str, shape: Shape, memory: TemplateMemory, state: Path, made_in_ns: int) -> Template:
        new, kept = self._templates_dir / f"{_NEW}{key}", self._templates_dir / key
        about = {
            "memory_bytes": shape.memory_bytes,
            "cpus": shape.cpus,
            "created_unix_ns": time.time_ns(),
            "made_in_ns": made_in_ns,
        }

        def write() -> None:
            memory.seal()
            memory.save(new / "memory")
            files.sync_file(state)
            for path in new.iterdir():
                if path.name not in ("memory", "state"):
                    path.unlink()
            files.write_durably(new / _ABOUT, json.dumps(about, indent=1).encode())
            self._remove(key)
            new.rename(kept)
            files.sync_directory(self._templates_dir)

        await asyncio.to_thread(write)
        template = QemuTemplate(kept, shape, about["created_unix_ns"], made_in_ns, self)
        template.adopt_memory(memory)
        self._templates[key] = template
        return template

    def _remove(self, key: str) -> None:
        trash = self._templates_dir / f"{_TRASH}{key}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            (self._templates_dir / key).rename(trash)
            shutil.rmtree(trash)

    def _sweep(self) -> None:
        for path in (*self._templates_dir.glob(f"{_NEW}*"), *self._templates_dir.glob(f"{_TRASH}*")):
            shutil.rmtree(path)
        for path in self._clones_dir.iterdir():
            shutil.rmtree(path)

    def _read(self, directory: Path) -> QemuTemplate | None:
        try:
            about = json.loads((directory / _ABOUT).read_bytes())
            shape = Shape(int(about["memory_bytes"]), int(about["cpus"]))
            if (directory / "memory").stat().st_size != shape.memory_bytes or not (directory / "state").is_file():
                return None
            return QemuTemplate(directory, shape, int(about["created_unix_ns"]), int(about["made_in_ns"]), self)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _key(self, shape: Shape) -> str:
        """Everything on QEMU's command line, and what stands behind it."""
        host = dataclasses.replace(self._host(), guest_image=Path("/"))
        argv = [
            word
            for shared in (True, False)
            for word in command.template_command(
                "",
                shape,
                host,
                memory=command.MemoryFile(0, shared=shared),
                qmp_fd=0,
                line=command.SerialLine(0),
            )
        ]
        return hashlib.sha256(json.dumps([_FORMAT, self._identity(), argv]).encode()).hexdigest()
