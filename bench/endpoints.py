"""What is measured: something that speaks Docker's API, with directories and sockets of its own, gone afterwards."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

_COMMAND_SECONDS = 300.0


class EndpointError(Exception):
    """It cannot be brought up here."""


@dataclass(frozen=True)
class Endpoint(ABC):
    """A Docker endpoint, spoken to with the docker CLI or over its socket."""

    name: str
    description: str
    # unix://PATH
    address: str
    # Without the contexts, plug-ins and credentials of whoever runs this.
    config_dir: Path
    # However many were asked for: it may be slow.
    most_runs: int = 1000

    @abstractmethod
    def processes_of(self, container: str) -> list[psutil.Process]:
        """Processes that exist for the sake of one container, by its full id."""

    @abstractmethod
    def settle(self) -> None:
        """Returns once it has made ready again what starts took, or has had its time for it."""

    @property
    def environment(self) -> dict[str, str]:
        """Makes the docker CLI speak to it."""
        return {**os.environ, "DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self.config_dir)}

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the docker CLI to its end. Raises subprocess.TimeoutExpired when there is none."""
        return subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )


def load_image(endpoint: Endpoint, archive: Path) -> None:
    """Raises EndpointError when it does not take the image."""
    done = endpoint.docker("load", "--input", str(archive))
    if done.returncode != 0:
        raise EndpointError(f"{endpoint.name} does not load {archive}: {done.stderr.strip()}")
