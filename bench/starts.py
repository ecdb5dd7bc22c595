"""Starts of containers: one alone, by the CLI and by the API, many at once, many one after another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bench import docker_api
from bench.endpoints import Endpoint
from bench.sampling import IDLE, Measure, Sample, SampleError, Sampler, docker, seconds

_AT_ONCE = 10
_IN_A_ROW = 50
_FLAVOURS = ("vch", "dockerd", "vch-clone", "vch-cold")


@contextmanager
def _run(endpoint: Endpoint) -> Iterator[Sampler]:
    yield lambda: Sample(seconds(lambda: docker(endpoint, "run", "--rm", "busybox", "true")))


@contextmanager
def _run_no_network(endpoint: Endpoint) -> Iterator[Sampler]:
    yield lambda: Sample(seconds(lambda: docker(endpoint, "run", "--rm", "--network", "none", "busybox", "true")))


@contextmanager
def _api_start(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> Sample:
        try:
            start = docker_api.start(endpoint.address, "busybox", ["echo", "here"], {"NetworkMode": "none"})
        except docker_api.ApiError as error:
            raise SampleError(str(error)) from error
        return Sample(start.seconds * 1000, _phases(start), start.method)

    yield sample


def _phases(start: docker_api.Start) -> dict[str, float]:
    """All of a start by phases, ms: what the VCH accounts for, and the rest of what a client waits for."""
    if not start.phases:
        return {}
    return {**start.phases, "API, output": start.seconds * 1000 - sum(start.phases.values())}


@contextmanager
def _parallel(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> Sample:
        failures: list[str] = []

        def run_all() -> None:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in range(_AT_ONCE):
                    pool.submit(_attempt, endpoint, ("run", "--detach", "busybox", *IDLE), failures)

        try:
            return Sample(seconds(run_all), failures=tuple(failures))
        finally:
            everything = endpoint.docker("ps", "--all", "--quiet").stdout.split()
            endpoint.docker("rm", "--force", *everything)

    yield sample


@contextmanager
def _sequential(endpoint: Endpoint) -> Iterator[Sampler]:
    def sample() -> Sample:
        failures: list[str] = []

        def run_all() -> None:
            for _ in range(_IN_A_ROW):
                _attempt(endpoint, ("run", "--rm", "busybox", "true"), failures)

        return Sample(seconds(run_all), failures=tuple(failures))

    yield sample


def _attempt(endpoint: Endpoint, arguments: tuple[str, ...], failures: list[str]) -> None:
    """One of many: a failure is counted, and does not end the others."""
    try:
        docker(endpoint, *arguments)
    except SampleError as error:
        failures.append(str(error))


RUN = Measure("run", "docker run --rm busybox true", "s", _run, starts=True)
RUN_NO_NETWORK = Measure(
    "run-no-network", "docker run --rm --network none", "s", _run_no_network, _FLAVOURS, many=True, starts=True
)
API_START = Measure("api-start", "API call to first output", "ms", _api_start, _FLAVOURS, many=True, starts=True)
PARALLEL = Measure("parallel", f"{_AT_ONCE} docker run -d at once", "s", _parallel, most_runs=3, starts=True)
SEQUENTIAL = Measure("sequential", f"{_IN_A_ROW} docker run --rm in a row", "s", _sequential, most_runs=1, starts=True)
