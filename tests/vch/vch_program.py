"""`vch` as a program whose parts are small fake programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parents[2]
_FAKES = Path(__file__).parent / "fakes"
# Programs start one another here, which takes seconds at most; on a machine that is busy with other things far more.
PATIENCE_S = 300.0


class Program:
    """`vch`, run as users run it, with one state directory and fake parts."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.environment = {**os.environ, "PYTHONPATH": f"{_FAKES}{os.pathsep}{_ROOT}"}
        self.environment.pop("VCH_PASSWORD", None)

    def arguments(self, command: str, *options: str) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-P", "-m", "vch", command, "--state-dir", str(self.state_dir), *options]

    def run(self, command: str, *options: str, **fakes: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; `portlayer="die"` chooses how a fake behaves."""
        environment = self.environment | {f"VCH_FAKE_{name.upper()}": value for name, value in fakes.items()}
        return subprocess.run(
            self.arguments(command, *options),
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def foreground(self) -> subprocess.Popen[str]:
        """`vch up` without --detach, serving; its standard output tells how to use it."""
        process = subprocess.Popen(
            self.arguments("up"), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert "serves" in process.stdout.readline()
        return process

    def processes(self) -> list[psutil.Process]:
        """What runs on this state directory."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(self.state_dir) in " ".join(process.info["cmdline"] or ())
        ]
