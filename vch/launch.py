"""Bringing a VCH up, in this process or detached, and down again."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import click

from vch import client, passwords, state, supervisor
from vch.errors import PartError, VchError
from vch.logs import PartLog
from vch.settings import Settings

_READY = b"ready\n"
# What a detached supervisor writes on its way out; the next VCH begins it anew.
_WORDS = "vch.err"
# More than its parts may take, one after the other.
_END_SECONDS = 90.0
# What the supervisor may take for itself, on a busy machine, beside its parts.
_HANG_SECONDS = 30.0


def foreground(settings: Settings, password: str | None, *, timeout_s: float, ready_fd: int | None) -> None:
    """Serves until told to end. With `ready_fd`, says so there, and nothing on the terminal."""
    state.ensure(settings.state_dir)
    with state.hold(settings.state_dir):
        if ready_fd is None:
            (settings.state_dir / _WORDS).unlink(missing_ok=True)

        def ready() -> None:
            if ready_fd is None:
                tell(settings)
            else:
                _say_ready(ready_fd)

        serving = supervisor.run(settings, password, timeout_s=timeout_s, echo=ready_fd is None, ready=ready)
        asyncio.run(serving)


def detached(settings: Settings, password: str | None, arguments: list[str], *, timeout_s: float) -> None:
    """Starts `vch up ARGUMENTS` in a session of its own and returns once it serves."""
    state.ensure(settings.state_dir)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe, (settings.state_dir / _WORDS).open("wb") as words:
        with passwords.filled_pipe(password) as secret:
            arguments = [*arguments, "--ready-fd", str(write), *passwords.password_arguments(secret)]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vch", "up", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=(write, *secret),
                start_new_session=True,
                cwd="/",
                env=passwords.environment(),
            )
        os.close(write)
        try:
            # The supervisor has a deadline for each part; this one only covers a supervisor that hangs.
            if select.select([pipe], [], [], 2 * timeout_s + _HANG_SECONDS)[0] and pipe.readline() == _READY:
                return
        except BaseException:
            process.terminate()
            raise
    process.terminate()
    code = process.wait()
    raise PartError(last_words(settings.state_dir) or f"it ended with code {code}; see {settings.state_dir}/*.log")


def end(directory: Path, pid: int) -> None:
    """Ends the VCH whose supervisor is `pid`; its containers keep running."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not state.wait_for_end(pid, _END_SECONDS):
        raise VchError(f"process {pid} did not end in {_END_SECONDS:.0f} s; see {directory}/vch.log")


def remove_all(directory: Path, password_file: Path | None, *, timeout_s: float) -> tuple[list[str], list[str]]:
    """Removes every container of a VCH, up or not; on vSphere its folder, pool and group too, as far as they are empty.

    Gives back names of containers, and what stays, in words. On vSphere, one that is not up needs the password again;
    `password_file` instead of the one that `up` was told.
    """
    running = state.read(directory)
    if running is not None:
        return client.remove_all(running.grpc, dismantled=running.vsphere is not None)
    last = state.read_last(directory)
    if not (last and last.vsphere) and not state.has_machines(directory):
        return [], []
    with state.hold(directory), closing(PartLog(directory, "portlayer", echo=False)) as log:
        if last is None:
            raise VchError(f"{directory} does not say how its VCH was started: `vch up` it, then `vch down --force`")
        password = passwords.find(last.vsphere, password_file) if last.vsphere else None
        return asyncio.run(supervisor.remove_all(last, password, log, timeout_s))


def tell(settings: Settings) -> None:
    """What the user needs now."""
    click.echo(f"VCH {settings.name} serves; containers are virtual machines from here on:")
    click.echo(f"  export DOCKER_HOST={settings.hosts[0]}")
    click.echo(f"  gRPC:  {settings.grpc}")
    click.echo(f"  state: {settings.state_dir}")


def last_words(directory: Path) -> str:
    """Why the last detached VCH ended; empty when it was told to."""
    try:
        return (directory / _WORDS).read_text(errors="replace").strip().removeprefix("Error: ")
    except OSError:
        return ""


def _say_ready(descriptor: int) -> None:
    with suppress(BrokenPipeError):
        os.write(descriptor, _READY)
    os.close(descriptor)
