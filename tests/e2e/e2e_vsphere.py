"""vSphere to bring a VCH up on: VMware's simulator, the front that adds what it lacks, the lab that runs its VMs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "vsphere"), str(TESTS / "lab")]

from vsphere_front import Front  # noqa: E402
from vsphere_plain import Plain  # noqa: E402
from vsphere_simulator import HOST, Simulator  # noqa: E402


@contextmanager
def vsphere() -> Iterator[list[str]]:
    """Yields the options of `vch up`; afterwards the inventory has no VM and the lab has ended."""
    with tempfile.TemporaryDirectory(prefix="vch-vsphere-") as scratch:
        directory = Path(scratch)
        simulator = Simulator(directory)
        try:
            with Front(simulator).open() as front, _lab(simulator, directory / "lab.log"):
                yield _options(simulator, front, directory / "password")
                with simulator.connected() as instance:
                    assert not Plain(instance).machines(), "the VCH has left VMs behind"
        finally:
            simulator.close()


def _options(simulator: Simulator, front: Front, password: Path) -> list[str]:
    password.write_text(simulator.password)
    return [
        *("--target", f"{simulator.user}@{HOST}:{front.port}"),
        *("--ca", str(simulator.ca_pem)),
        *("--password-file", str(password)),
        *("--compute-resource", "DC0_C0"),
        *("--datastore", "LocalDS_0"),
        *("--bridge-network", "DC0_DVPG0"),
        *("--serial-listen", f"{HOST}:0"),
        *("--serial-address", HOST),
    ]


@contextmanager
def _lab(simulator: Simulator, log: Path) -> Iterator[None]:
    arguments = ["--host", HOST, "--port", str(simulator.port), "--user", simulator.user]
    with log.open("wb") as output:
        lab = subprocess.Popen(
            [sys.executable, TESTS / "lab", *arguments],
            env=os.environ | {"LAB_PASSWORD": simulator.password},
            stderr=output,
        )
    try:
        yield
        assert lab.poll() is None, log.read_text()
    finally:
        lab.terminate()
        lab.wait()
