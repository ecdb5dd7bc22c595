"""The templates of instant clone as `vch status` shows them: as facts for programs, and as one line for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from portlayer.v1 import system_pb2


def facts(template: system_pb2.Template) -> dict[str, Any]:
    """Sizes in bytes, times in seconds or as ISO 8601; null for what has not happened yet."""
    return {
        "id": template.id,
        "state": system_pb2.Template.State.Name(template.state).removeprefix("STATE_").lower(),
        "memory_bytes": template.memory_bytes,
        "cpus": template.cpus,
        "disk_bytes": template.disk_bytes,
        "resident_bytes": template.resident_bytes,
        "clones": template.clones,
        "waiting": template.pooled,
        "uses": template.uses,
        "created": _time(template.created_unix_ns),
        "last_used": _time(template.last_used_unix_ns),
        "made_in_s": round(template.made_in_ns / 1e9, 3) if template.made_in_ns else None,
        "error": template.error,
    }


def line(about: dict[str, Any]) -> str:
    """ "1024 MiB, 1 CPU: ready; 270 MiB on disk, ..." of a template's facts."""
    cpus = f"{about['cpus']} CPU{'' if about['cpus'] == 1 else 's'}"
    head = f"{_mib(about['memory_bytes'])}, {cpus}: {about['state']}"
    if about["error"]:
        return f"{head}: {about['error']}"
    if about["made_in_s"] is None:
        return head
    return (
        f"{head}; {_mib(about['disk_bytes'])} on disk, {_mib(about['resident_bytes'])} in memory; "
        f"{about['clones']} running, {about['waiting']} waiting; made in {about['made_in_s']:.1f} s"
    )


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _time(unix_ns: int) -> str | None:
    if not unix_ns:
        return None
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).astimezone().isoformat(timespec="seconds")
