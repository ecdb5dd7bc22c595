"""Limits of descriptors: the port layer holds some for each VM, however low the limit is that it was begun with."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from portlayer.drivers.qemu import process


def test_the_limit_is_raised() -> None:
    program = (
        "import resource; from portlayer.main import raise_descriptor_limit; raise_descriptor_limit();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 64; ulimit -Hn 1200; exec "$@"', "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1200\n"


def test_whether_a_vm_has_ended_is_seen_on_a_high_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("the hard limit here is too low for a descriptor above 1023")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    child = subprocess.Popen(["sleep", "60"])
    low = os.pidfd_open(child.pid)
    high = 1100
    os.dup2(low, high)
    try:
        assert not process._has_ended(high)
        child.kill()
        child.wait()
        assert process._has_ended(high)
    finally:
        os.close(low)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
