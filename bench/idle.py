"""Containers that do nothing: what they cost in memory, and whether they answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import memory
from bench.endpoints import Endpoint
from bench.sampling import IDLE, Measure, Sample, SampleError, Sampler, docker, seconds
from bench.vch_endpoint import Vch, is_qemu

_FEW = 3
_SETTLE_SECONDS = 5.0
# Names of parts of the sample that targets are about.
PRIVATE_MOST = "QEMU of a container: private, most, MiB"


def many(containers: int) -> Measure:
    """So many idle containers of a VCH at once: the slowest exec, and where all the memory is."""

    @contextmanager
    def prepare(endpoint: Endpoint) -> Iterator[Sampler]:
        assert isinstance(endpoint, Vch)
        yield lambda: _sample(endpoint, containers)

    what = f"exec, slowest of {containers} idle"
    return Measure("idle", what, "s", prepare, endpoints=("vch",), most_runs=1, starts=True)


@contextmanager
def _few(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> Sample:
        with _idle(endpoint, _FEW) as containers:
            processes = [process for one in containers for process in endpoint.processes_of(one)]
            return Sample(memory.of_all(processes).proportional / _FEW)

    yield sample


def _sample(endpoint: Vch, count: int) -> Sample:
    before = memory.of_machine()
    with _idle(endpoint, count) as containers:
        after = memory.of_machine()
        parts = _of_containers(endpoint, containers) | _of_kinds(endpoint) | _of_templates(endpoint)
        for name, size in after.items():
            parts[f"machine: {name}, MiB more"] = size - before[name]
        execs, failures = _execs(endpoint, containers)
    if not execs:
        raise SampleError(failures[0])
    return Sample(max(execs), {"exec, median, s": statistics.median(execs), **parts}, failures=tuple(failures))


def _execs(endpoint: Endpoint, containers: list[str]) -> tuple[list[float], list[str]]:
    """How long each took, and what failed."""
    taken, failures = [], []
    for one in containers:
        try:
            taken.append(seconds(lambda container=one: docker(endpoint, "exec", container, "true")))  # type: ignore[misc]
        except SampleError as error:
            failures.append(str(error))
    return taken, failures


def _of_containers(endpoint: Vch, containers: list[str]) -> dict[str, float]:
    processes = [process for one in containers for process in endpoint.processes_of(one) if is_qemu(process)]
    if len(processes) != len(containers):
        raise SampleError(f"{len(processes)} QEMU processes for {len(containers)} containers")
    each = [memory.of_process(process.pid) for process in processes]
    private, proportional = [one.private for one in each], [one.proportional for one in each]
    return {
        "QEMU of a container: private, median, MiB": statistics.median(private),
        PRIVATE_MOST: max(private),
        "QEMU of a container: PSS, median, MiB": statistics.median(proportional),
        "QEMU of a container: PSS, most, MiB": max(proportional),
    }


def _of_kinds(endpoint: Vch) -> dict[str, float]:
    parts = {}
    for kind, processes in endpoint.processes_by_kind().items():
        held = memory.of_all(processes)
        parts[f"all of {kind} ({len(processes)}): private, MiB"] = held.private
        parts[f"all of {kind} ({len(processes)}): PSS, MiB"] = held.proportional
    return parts


def _of_templates(endpoint: Vch) -> dict[str, float]:
    """What clones share of the template's memory: the kernel has it in its page cache, once."""
    resident = [one.resident_bytes for one in endpoint.templates()]
    return {f"templates ({len(resident)}): resident, shared, MiB": sum(resident) / (1 << 20)}


@contextmanager
def _idle(endpoint: Endpoint, count: int) -> Iterator[list[str]]:
    """Containers that have done nothing for a while."""
    containers: list[str] = []
    try:
        for _ in range(count):
            containers.append(docker(endpoint, "run", "--detach", "busybox", *IDLE))
        time.sleep(_SETTLE_SECONDS)
        yield containers
    finally:
        if containers:
            endpoint.docker("rm", "--force", *containers)


FEW = Measure("memory", "memory of an idle container", "MiB PSS", _few, most_runs=1, starts=True)
