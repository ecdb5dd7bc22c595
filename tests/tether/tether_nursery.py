"""A process that has loaded the agent and forks one for each test: loading it takes longer than most tests do."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PROGRAM = Path(__file__).with_name("tether_agent_program.py")


class Nursery:
    """The program's other end."""

    def __init__(self) -> None:
        # Unbuffered: what has been read of its output and what can be read are the same.
        self._process = subprocess.Popen(
            [sys.executable, _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._process:
            pass  # it ends with its input

    def start(self, path: Path, changes: dict[str, object], hand_over_s: float | None) -> AgentProcess:
        """Returns when the agent listens at `path`."""
        assert self._process.stdout is not None
        request = {"start": str(path), "changes": changes, "hand_over_s": hand_over_s}
        process = AgentProcess(self, int(self.ask(request)))
        ready, _, _ = select.select([process.pidfd, self._process.stdout], [], [])
        assert self._process.stdout in ready, f"the agent ended: {process.wait(0)}"
        assert self._process.stdout.readline() == b"listening\n"
        return process

    def ask(self, request: dict[str, object]) -> bytes:
        """The program's answer, a line."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            return self._process.stdout.readline()


class AgentProcess:
    """An agent that was forked; what subprocess.Popen would be, were it a child."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        """No effect on one that has ended."""
        if self._status is None:
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout_s: float) -> int:
        """How it ended, as subprocess tells it. Raises TimeoutError."""
        if self._status is None:
            if not select.select([self.pidfd], [], [], timeout_s)[0]:
                raise TimeoutError(f"agent {self.pid} does not end")
            self._status = int(self._nursery.ask({"wait": self.pid}))
            os.close(self.pidfd)
        return self._status

    @property
    def runs(self) -> bool:
        return self._status is None and not select.select([self.pidfd], [], [], 0)[0]
