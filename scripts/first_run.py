#!/usr/bin/env python3
"""The demonstration behind `make run`: brings a VCH up, runs containers in it with docker-py, shows what they did."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

_VCH = Path(sys.executable).parent / "vch"
_IMAGE = "busybox:latest"
_NAME = "first"
_SCRIPT = "echo \"hello from $(hostname): Linux $(uname -r), $(nproc) CPU, $(free -m | awk '/Mem/ {print $2}') MiB\""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--guest-image", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True, help="archive with busybox:latest")
    options = parser.parse_args()
    try:
        address = _bring_up(options.state_dir.absolute(), options.guest_image)
        client = docker.DockerClient(base_url=address, version="auto", timeout=120)
        try:
            _show(client, options.image)
        finally:
            client.close()
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except docker.errors.DockerException as error:
        sys.stderr.write(f"docker: {error}\nThe VCH's logs: {options.state_dir}/*.log\n")
        return 1
    _say("")
    _say("The VCH stays up. Use it with any Docker client, and end it with `make stop`:")
    _say(f"  export DOCKER_HOST={address}")
    _say(f"  docker exec -it {_NAME} sh")
    _say(f"  {os.path.relpath(_VCH)} status --state-dir {os.path.relpath(options.state_dir)}")
    return 0


def _bring_up(state_dir: Path, guest_image: Path) -> str:
    """Address for Docker clients of a VCH that serves."""
    status = _status(state_dir)
    if not status["up"]:
        begin = time.monotonic()
        command: list[str | Path] = [_VCH, "up", "--detach", "--name", "run"]
        command += ["--state-dir", state_dir, "--guest-image", guest_image]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _say(f"VCH up in {time.monotonic() - begin:.1f} s")
        status = _status(state_dir)
    _say(f"{status['driver']}: {status['driver_status'].get('Accelerator reason', '')}")
    return str(status["docker_host"])


def _status(state_dir: Path) -> dict[str, Any]:
    done = subprocess.run([_VCH, "status", "--json", "--state-dir", state_dir], capture_output=True, check=False)
    return dict(json.loads(done.stdout))


def _show(client: docker.DockerClient, archive: Path) -> None:
    if not client.images.list(name=_IMAGE):
        begin = time.monotonic()
        client.images.load(archive.read_bytes())
        _say(f"image {_IMAGE} loaded in {time.monotonic() - begin:.1f} s")
    _say("")
    begin = time.monotonic()
    _say(f"$ docker run --rm busybox sh -c {shlex.quote(_SCRIPT)}")
    output = client.containers.run(_IMAGE, ["sh", "-c", _SCRIPT], remove=True)
    _say(output.decode().rstrip())
    _say(f"  a VM booted, ran it and was removed in {time.monotonic() - begin:.1f} s; this machine runs Linux ", end="")
    _say(platform.release())
    container = _standing(client)
    _say("")
    begin = time.monotonic()
    _say(f"$ docker exec {_NAME} ps")
    _say(container.exec_run(["ps"]).output.decode().rstrip())
    _say(f"  took {(time.monotonic() - begin) * 1000:.0f} ms")
    _say("")
    _say("$ docker ps -a")
    for one in client.containers.list(all=True):
        _say(f"{one.short_id}  {one.attrs['Config']['Image']:<16} {one.status:<9} {one.name}")


def _standing(client: docker.DockerClient) -> Container:
    """A container that goes on running, for whoever wants to look around."""
    try:
        container = client.containers.get(_NAME)
    except docker.errors.NotFound:
        _say("")
        _say(f"$ docker run -d --name {_NAME} --hostname {_NAME} busybox sleep infinity")
        return client.containers.run(_IMAGE, ["sleep", "infinity"], name=_NAME, hostname=_NAME, detach=True)
    container.start()
    return container


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
