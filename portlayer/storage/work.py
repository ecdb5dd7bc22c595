"""Blocking work in threads that ends when its caller is cancelled, and a directory that lasts as long as the work."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from portlayer.errors import UnavailableError
from portlayer.storage.files import storage_errors

P = ParamSpec("P")
T = TypeVar("T")

_PREFIX = "images-"


class WorkStopped(Exception):
    """Unwinds a thread whose result nobody awaits any more. Never leaves this module's callers."""


class Work:
    """One job. Its threads call `check` often; its caller's cancellation stops them and waits until they ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._processes: set[subprocess.Popen[bytes]] = set()

    def check(self) -> None:
        """Raises WorkStopped once the caller was cancelled."""
        if self._stopped:
            raise WorkStopped

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function`, run in a thread. When this returns or raises, the thread has let go of it."""

        def call() -> T:
            with storage_errors("image store"):
                return function(*args, **kwargs)

        future = asyncio.get_running_loop().run_in_executor(None, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._stop()
            await _until_done(future)
            raise

    @contextlib.contextmanager
    def process(self, command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
        """A child process that does not outlive the block, and is killed when the work is stopped."""
        with self._lock:
            self.check()
            try:
                child: subprocess.Popen[bytes] = subprocess.Popen(command, **options)  # type: ignore[call-overload]
            except FileNotFoundError as error:
                raise UnavailableError(f"{command[0]} is not installed on this host") from error
            self._processes.add(child)
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            with self._lock:
                self._processes.discard(child)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._processes:
                child.kill()


async def to_completion(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, for steps that must not be left half done: cancellation waits for the end."""
    future = asyncio.get_running_loop().run_in_executor(None, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _until_done(future)
        raise


async def uninterrupted(coroutine: Coroutine[Any, Any, T]) -> T:
    """Like to_completion, for a coroutine."""
    task = asyncio.ensure_future(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _until_done(task)
        raise


async def _until_done(future: asyncio.Future[T]) -> None:
    """Waits through further cancellations; the one that came first is what the caller raises."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # it was nobody's to handle


@contextlib.asynccontextmanager
async def staging(parent: Path) -> AsyncIterator[Path]:
    """A new directory below `parent`, gone with all in it after the block."""
    directory = _make_directory(parent)
    try:
        yield directory
    finally:
        await to_completion(shutil.rmtree, directory, ignore_errors=True)


def _make_directory(parent: Path) -> Path:
    with storage_errors("making a temporary directory"):
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))


def sweep_staging(parent: Path) -> None:
    """Removes what a killed process left of `staging`."""
    for directory in parent.glob(f"{_PREFIX}*"):
        shutil.rmtree(directory, ignore_errors=True)
