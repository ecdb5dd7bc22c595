"""What is measured, and how. Each measure prepares an endpoint, then gives one sample per call."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.endpoints import Endpoint

_MIB = 1 << 20
_ZEROS = 256 * _MIB
_BLOCK = 64 << 10
_LINES = 500_000
_LINE = "0123456789abcdef" * 4
_IDLE = 3
_SETTLE_SECONDS = 5.0
_PARALLEL = 10

Sampler = Callable[[], float]


class SampleError(Exception):
    """The endpoint did not do what was asked."""


@dataclass(frozen=True)
class Measure:
    """One figure."""

    name: str
    unit: str
    prepare: Callable[[Endpoint], AbstractContextManager[Sampler]]
    more_is_better: bool = False
    # However many were asked for: some take long.
    most_runs: int = 1000


def _docker(endpoint: Endpoint, *arguments: str) -> str:
    done = endpoint.docker(*arguments)
    if done.returncode != 0:
        raise SampleError(f"docker {' '.join(arguments)}: exit code {done.returncode}, {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def _container(endpoint: Endpoint, *command: str) -> Iterator[str]:
    container = _docker(endpoint, "run", "--detach", "busybox", *command)
    try:
        yield container
    finally:
        endpoint.docker("rm", "--force", container)


@contextmanager
def _cold_run(endpoint: Endpoint) -> Iterator[Sampler]:
    yield lambda: _timed(lambda: _docker(endpoint, "run", "--rm", "busybox", "true"))


@contextmanager
def _exec(endpoint: Endpoint) -> Iterator[Sampler]:
    with _container(endpoint, "sleep", "100000") as container:
        yield lambda: _timed(lambda: _docker(endpoint, "exec", container, "true"))


@contextmanager
def _create_rm(endpoint: Endpoint) -> Iterator[Sampler]:
    yield lambda: _timed(lambda: _docker(endpoint, "rm", _docker(endpoint, "create", "busybox", "true")))


@contextmanager
def _attach_throughput(endpoint: Endpoint) -> Iterator[Sampler]:
    expected = hashlib.sha256(bytes(_ZEROS)).hexdigest()
    # In blocks: busybox's `head -c` goes byte by byte, and would be what is measured.
    command = ("run", "--rm", "busybox", "dd", "if=/dev/zero", f"bs={_BLOCK}", f"count={_ZEROS // _BLOCK}")
    # From the first byte on: how long a start takes is a figure of its own.
    yield lambda: _ZEROS / _MIB / _read(endpoint, command, expected).after_first_byte


@contextmanager
def _logs(endpoint: Endpoint) -> Iterator[Sampler]:
    text = f"{_LINE}\n".encode() * _LINES
    expected = hashlib.sha256(text).hexdigest()
    with _container(endpoint, "sh", "-c", f"yes {_LINE} | head -n {_LINES}") as container:
        _docker(endpoint, "wait", container)
        yield lambda: len(text) / 1e6 / _read(endpoint, ("logs", container), expected).in_all


@contextmanager
def _memory(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> float:
        containers = [_docker(endpoint, "run", "--detach", "busybox", "sleep", "100000") for _ in range(_IDLE)]
        try:
            time.sleep(_SETTLE_SECONDS)
            return sum(map(_pss, (process.pid for one in containers for process in endpoint.processes_of(one)))) / _IDLE
        finally:
            endpoint.docker("rm", "--force", *containers)

    yield sample


@contextmanager
def _parallel_runs(endpoint: Endpoint) -> Iterator[Sampler]:
    def run(_: int) -> str:
        return _docker(endpoint, "run", "--detach", "busybox", "sleep", "100000")

    def sample() -> float:
        containers: list[str] = []
        try:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                return _timed(lambda: containers.extend(pool.map(run, range(_PARALLEL))))
        finally:
            everything = endpoint.docker("ps", "--all", "--quiet").stdout.split()
            endpoint.docker("rm", "--force", *everything)

    yield sample


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class _Seconds:
    in_all: float
    after_first_byte: float


def _read(endpoint: Endpoint, arguments: tuple[str, ...], expected: str) -> _Seconds:
    """How long the output took. Raises SampleError when a byte of it differs."""
    digest = hashlib.sha256()
    begin = time.perf_counter()
    with subprocess.Popen(
        ["docker", *arguments],
        env=endpoint.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        digest.update(process.stdout.read(_MIB))
        first = time.perf_counter()
        while chunk := process.stdout.read(_MIB):
            digest.update(chunk)
        end = time.perf_counter()
        words = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise SampleError(f"docker {arguments[0]}: exit code {process.returncode}, {words}")
    if digest.hexdigest() != expected:
        raise SampleError(f"docker {arguments[0]} gave other bytes than were written")
    return _Seconds(end - begin, end - first)


def _pss(pid: int) -> float:
    """Proportional set size in MiB: shared pages count for each process by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


MEASURES = (
    Measure("run", "s", _cold_run),
    Measure("exec", "s", _exec),
    Measure("create-rm", "s", _create_rm),
    Measure("attach", "MiB/s", _attach_throughput, more_is_better=True, most_runs=3),
    Measure("logs", "MB/s", _logs, more_is_better=True, most_runs=3),
    Measure("memory", "MiB PSS", _memory, most_runs=1),
    Measure("parallel", "s", _parallel_runs, most_runs=3),
)
