"""All of a VCH's templates and waiting clones: given out to starts, made and cleared away while nothing starts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from portlayer.drivers.base import Clone, Cloning, MachineSpec, Parent, Shape, Template
from portlayer.errors import PortLayerError
from portlayer.instantclone.pool import Pool, Waiting
from portlayer.instantclone.rehearsal import rehearse, stand_still
from portlayer.v1 import system_pb2

_RETRY_S = 600.0
_LOOK_ROUND_S = 60.0
_CLOSE_S = 10.0
_UNUSED_S = 24 * 3600.0
_log = logging.getLogger(__name__)

Emit = Callable[[str, str, str, Mapping[str, str]], object]


@dataclass(frozen=True)
class Taken:
    """A clone for a container that starts."""

    clone: Clone
    template_id: str
    pooled: bool


@dataclass
class _Entry:
    """What is known of one shape."""

    shape: Shape
    state: system_pb2.Template.State.ValueType = system_pb2.Template.STATE_WAITING
    template: Template | None = None
    error: str = ""
    retry_at: float = 0.0
    uses: int = 0


class InstantClones:
    """See the module's docstring. With `cloning` None every start boots. `open` first, `close` last."""

    def __init__(
        self, cloning: Cloning | None, default: tuple[int, int], pool_size: int, pool_memory_bytes: int, emit: Emit
    ) -> None:
        self._cloning = cloning
        self._default = cloning.shape_for(*default) if cloning else None
        self._pool = Pool(pool_size, pool_memory_bytes, self._default or Shape(0, 0))
        self._emit = emit
        self._entries: dict[Shape, _Entry] = {}
        self._starts = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._watches: dict[Clone, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Takes up the templates that are there, and begins to make what is missing, in the background."""
        if self._cloning is None:
            return
        for template in await self._cloning.templates():
            self._entries[template.shape] = _Entry(template.shape, system_pb2.Template.STATE_READY, template)
        if self._default is not None:
            self._entries.setdefault(self._default, _Entry(self._default))
        self._wake.set()
        self._worker = asyncio.create_task(self._work(), name="instant clone")

    async def close(self) -> None:
        """Ends waiting clones; those that became containers go on, and templates stay."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        # Those that cannot be removed now, nobody misses: the next port layer removes what is left.
        if ending := [asyncio.create_task(self._quietly(clone)) for clone in self._pool.take_all()]:
            await asyncio.wait(ending, timeout=_CLOSE_S)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While a container starts, nothing is done in advance."""
        self._starts += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                self._idle.set()

    async def take(self, spec: MachineSpec) -> Taken | None:
        """A clone that can carry such a machine, out of the pool or made now; None when it has to boot."""
        shape = self._cloning.shape_for(spec.memory_bytes, spec.cpus) if self._cloning else None
        if shape is None:
            return None
        entry = self._entries.setdefault(shape, _Entry(shape))
        self._pool.note_start(shape)
        self._wake.set()
        if (template := entry.template) is None:
            return None
        entry.uses += 1
        template.note_use()
        if (clone := self._pool.take(shape)) is not None:
            self._unwatch(clone)
            return Taken(clone, template.id, pooled=True)
        try:
            return Taken(await template.clone(), template.id, pooled=False)
        except PortLayerError as error:
            _log.warning("template %s cannot be cloned: %s", template.id[:12], error)
            await self._look_again(entry)
            return None

    async def _look_again(self, entry: _Entry) -> None:
        """After a clone that failed: a template that can be cloned no more is made anew."""
        assert self._cloning is not None
        if entry.template is not None and entry.template not in await self._cloning.templates():
            entry.template, entry.state = None, system_pb2.Template.STATE_WAITING
            self._wake.set()

    def describe(self, clones: Mapping[str, int]) -> list[system_pb2.Template]:
        """For clients; `clones` says how many containers run in clones of a template, by its id."""
        return [self._describe(entry, clones) for entry in self._entries.values()]

    def _describe(self, entry: _Entry, clones: Mapping[str, int]) -> system_pb2.Template:
        about = system_pb2.Template(
            state=entry.state,
            memory_bytes=entry.shape.memory_bytes,
            cpus=entry.shape.cpus,
            pooled=self._pool.count(entry.shape),
            error=entry.error,
            uses=entry.uses,
        )
        if (template := entry.template) is not None:
            about.id = template.id
            about.disk_bytes, about.resident_bytes = template.disk_bytes, template.resident_bytes
            about.created_unix_ns, about.made_in_ns = template.created_unix_ns, template.made_in_ns
            about.last_used_unix_ns = template.last_used_unix_ns
            about.clones = clones.get(template.id, 0)
        return about

    # --- in the background

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_ROUND_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._idle.wait()
            try:
                if await self._step():
                    self._wake.set()
            except PortLayerError as error:
                _log.warning("instant clone: %s", error)
            except Exception:  # an error of ours must not end all that is done in advance
                _log.exception("instant clone")

    async def _step(self) -> bool:
        """Does the one thing that is most wanted; False when there is none."""
        for entry in list(self._entries.values()):
            if entry.template is None and time.monotonic() >= entry.retry_at:
                await self._make(entry)
                return True
        if (clone := self._pool.take_surplus()) is not None:
            await self._discard(clone)
            return True
        ready = {entry.shape for entry in self._entries.values() if entry.template is not None}
        if (shape := self._pool.wanting(ready)) is not None:
            return await self._fill(self._entries[shape])
        return await self._collect()

    async def _make(self, entry: _Entry) -> None:
        assert self._cloning is not None
        entry.state, entry.error = system_pb2.Template.STATE_MAKING, ""
        what = {"memory": str(entry.shape.memory_bytes), "cpus": str(entry.shape.cpus)}
        _log.info("making a template of %d MiB and %d CPUs", entry.shape.memory_bytes >> 20, entry.shape.cpus)
        began = time.monotonic_ns()
        try:
            parent = await self._cloning.boot_parent(entry.shape)
            try:
                await rehearse(parent, self._cloning.rehearsals[0])
                template = await parent.freeze(time.monotonic_ns() - began)
                if self._cloning.parents_freeze_themselves:
                    await self._stop(parent, template)
                entry.template = template
            finally:
                await parent.discard()
        except Exception as error:
            entry.state, entry.error = system_pb2.Template.STATE_FAILED, str(error)
            entry.retry_at = time.monotonic() + _RETRY_S
            if not isinstance(error, PortLayerError):
                raise
            _log.error("a template could not be made, containers of its shape boot: %s", error)
            return
        entry.state = system_pb2.Template.STATE_READY
        _log.info("template %s is ready", entry.template.id[:12])
        self._emit("template", "create", entry.template.id, what)

    async def _stop(self, parent: Parent, template: Template) -> None:
        try:
            await stand_still(parent)
        except BaseException:
            await template.remove()
            raise

    async def _fill(self, entry: _Entry) -> bool:
        assert entry.template is not None
        assert self._cloning is not None
        try:
            clone = await entry.template.clone()
        except PortLayerError:
            await self._look_again(entry)
            raise
        try:
            await clone.resume()
            if times := self._cloning.rehearsals[1]:
                await rehearse(clone, times)
            await clone.suspend()
            fits = self._pool.add(Waiting(clone, await clone.private_bytes()))
        except BaseException:
            await clone.discard()
            raise
        if fits:
            self._watches[clone] = asyncio.create_task(self._watch(clone))
        else:
            await clone.discard()
        return fits

    async def _watch(self, clone: Clone) -> None:
        """A clone that goes away while it waits is nobody's."""
        await clone.wait_off()
        self._watches.pop(clone, None)
        self._pool.drop(clone)
        self._wake.set()
        await self._quietly(clone)

    def _unwatch(self, clone: Clone) -> None:
        if (watch := self._watches.pop(clone, None)) is not None:
            watch.cancel()

    async def _quietly(self, clone: Clone) -> None:
        try:
            await self._discard(clone)
        except PortLayerError as error:
            _log.warning("a clone that waited stays for now: %s", error)

    async def _discard(self, clone: Clone) -> None:
        self._unwatch(clone)
        await clone.discard()

    async def _collect(self) -> bool:
        """Removes a template that nobody has used for long."""
        oldest = time.time_ns() - int(_UNUSED_S * 1e9)
        for entry in list(self._entries.values()):
            template = entry.template
            if template is None or entry.shape == self._default or template.last_used_unix_ns > oldest:
                continue
            del self._entries[entry.shape]
            await template.remove()
            self._emit("template", "destroy", template.id, {})
            return True
        return False
