"""What a measure is, and what a sample of it gives; what all measures need to take one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from bench.endpoints import Endpoint

IDLE = ("sleep", "100000")


class SampleError(Exception):
    """The endpoint did not do what was asked."""


@dataclass(frozen=True)
class Sample:
    """One figure, and what else was seen on the way to it."""

    value: float
    # Further figures of the same sample: their units are in their names, or are the measure's.
    parts: dict[str, float] = field(default_factory=dict)
    # How the endpoint says that it started the container; empty where it does not say, or where many were started.
    start_method: str = ""
    # What went wrong without ending the sample.
    failures: tuple[str, ...] = ()


Sampler = Callable[[], Sample]


@dataclass(frozen=True)
class Measure:
    """One figure of some endpoints."""

    name: str
    what: str
    unit: str
    prepare: Callable[[Endpoint], AbstractContextManager[Sampler]]
    endpoints: tuple[str, ...] = ("vch", "dockerd")
    more_is_better: bool = False
    # Sampled as often as `--starts` says, not `--runs`.
    many: bool = False
    # However many were asked for: some take long.
    most_runs: int = 1000
    # It takes from what an endpoint keeps ready for starts; that is filled again after each sample, untimed, so that
    # the filling is no other sample's load.
    starts: bool = False


def docker(endpoint: Endpoint, *arguments: str) -> str:
    """What the docker CLI writes. Raises SampleError when it fails or hangs."""
    words = f"docker {' '.join(arguments)}"
    try:
        done = endpoint.docker(*arguments)
    except subprocess.TimeoutExpired as error:
        raise SampleError(f"{words}: no end after {error.timeout:.0f} s") from error
    if done.returncode != 0:
        raise SampleError(f"{words}: exit code {done.returncode}, {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def container(endpoint: Endpoint, *command: str) -> Iterator[str]:
    """The id of a container that runs `command`."""
    created = docker(endpoint, "run", "--detach", "busybox", *command)
    try:
        yield created
    finally:
        endpoint.docker("rm", "--force", created)


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
