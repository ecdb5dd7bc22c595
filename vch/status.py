"""What `vch status` says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vch import client, launch, state, templates

_NOT_UP = 3


def facts(directory: Path) -> tuple[dict[str, Any], int]:
    """What `vch status` shows, and its exit code."""
    running = state.read(directory)
    if running is None:
        return {"up": False, "state_dir": str(directory), "last_error": launch.last_words(directory)}, _NOT_UP
    found: dict[str, Any] = {
        "up": True,
        "name": running.name,
        "since": datetime.fromtimestamp(running.started, UTC).astimezone().isoformat(timespec="seconds"),
        "docker_host": running.hosts[0],
        "hosts": list(running.hosts),
        "grpc": running.grpc,
        "state_dir": str(directory),
        "target": running.vsphere.target if running.vsphere else "",
        "pids": {"vch": running.pid, **running.parts},
    }
    about = client.info(running.grpc)
    made = None if about is None else client.templates(running.grpc)
    if about is None or made is None:
        return found | {"answers": False}, 1
    containers = {
        "running": about.containers_running,
        "paused": about.containers_paused,
        "stopped": about.containers_stopped,
    }
    found |= {"answers": True, "containers": containers, "images": about.images}
    found["templates"] = [templates.facts(one) for one in made]
    return found | {"driver": about.driver, "driver_status": dict(about.driver_status)}, 0


def show(facts: dict[str, Any]) -> None:
    """For people."""
    for key, value in facts.items():
        label = f"{key.replace('_', ' ')}:"
        if key == "driver_status":
            for what, words in sorted(value.items()):
                click.echo(f"  {what + ':':<20} {words}")
        elif key == "templates":
            for number, one in enumerate(value):
                click.echo(f"{'' if number else label:<15} {templates.line(one)}")
        elif isinstance(value, dict):
            click.echo(f"{label:<15} {', '.join(f'{one} {what}' for one, what in value.items())}")
        elif isinstance(value, list):
            click.echo(f"{label:<15} {', '.join(value)}")
        elif isinstance(value, bool):
            click.echo(f"{label:<15} {'yes' if value else 'no'}")
        elif value != "":
            click.echo(f"{label:<15} {value}")
