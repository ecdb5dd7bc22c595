"""Output in bulk, checked byte by byte."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.endpoints import Endpoint
from bench.sampling import Measure, Sample, SampleError, Sampler, container, docker

_MIB = 1 << 20
_ZEROS = 256 * _MIB
_BLOCK = 64 << 10
_LINES = 500_000
_LINE = "0123456789abcdef" * 4


@contextmanager
def _attach(endpoint: Endpoint) -> Iterator[Sampler]:
    expected = hashlib.sha256(bytes(_ZEROS)).hexdigest()
    # In blocks: busybox's `head -c` goes byte by byte, and would be what is measured.
    command = ("run", "--rm", "busybox", "dd", "if=/dev/zero", f"bs={_BLOCK}", f"count={_ZEROS // _BLOCK}")
    # From the first byte on: how long a start takes is a figure of its own.
    yield lambda: Sample(_ZEROS / _MIB / _read(endpoint, command, expected).after_first_byte)


@contextmanager
def _logs(endpoint: Endpoint) -> Iterator[Sampler]:
    text = f"{_LINE}\n".encode() * _LINES
    expected = hashlib.sha256(text).hexdigest()
    with container(endpoint, "sh", "-c", f"yes {_LINE} | head -n {_LINES}") as writer:
        docker(endpoint, "wait", writer)
        yield lambda: Sample(len(text) / 1e6 / _read(endpoint, ("logs", writer), expected).in_all)


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


ATTACH = Measure("attach", "docker run, 256 MiB of zeros out", "MiB/s", _attach, more_is_better=True, most_runs=3)
LOGS = Measure("logs", f"docker logs of {_LINES:,} lines", "MB/s", _logs, more_is_better=True, most_runs=3)
