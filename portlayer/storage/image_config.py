"""The image configuration of OCI and Docker, parsed and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from portlayer.errors import InvalidArgumentError
from portlayer.storage.documents import Document
from portlayer.storage.references import SHA256

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_MAX_TIME_NS = 2**63 - 1
_MAX_RETRIES = 2**31 - 1


@dataclass(frozen=True)
class HistoryRecord:
    """One step of an image's making."""

    created_unix_ns: int
    created_by: str
    comment: str
    empty_layer: bool


@dataclass(frozen=True)
class HealthCheck:
    """How containers say that they are well. Empty and 0 where the image leaves it open."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of itself. Empty means that it does not say."""

    architecture: str
    os: str
    variant: str
    author: str
    comment: str
    # Nanoseconds since 1970, 0 for unknown.
    created_unix_ns: int
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    # NAME=value
    env: tuple[str, ...]
    working_dir: str
    user: str
    # Name or number.
    stop_signal: str
    labels: Mapping[str, str]
    # "80/tcp"
    exposed_ports: tuple[str, ...]
    volumes: tuple[str, ...]
    health_check: HealthCheck
    # Of the uncompressed layers, lowest first.
    diff_ids: tuple[str, ...]
    history: tuple[HistoryRecord, ...]


def parse_image_config(data: bytes, where: str) -> ImageConfig:
    """Raises InvalidArgumentError for anything that is not an image configuration."""
    document = Document.parse(data, where)
    run = document["config"]
    history = tuple(_history_record(item) for item in document["history"].items())
    return ImageConfig(
        architecture=document["architecture"].text(),
        os=_operating_system(document["os"].text()),
        variant=document["variant"].text(),
        author=document["author"].text(),
        comment=document["comment"].text() or (history[-1].comment if history else ""),
        created_unix_ns=_time_ns(document["created"]),
        entrypoint=run["Entrypoint"].texts(),
        cmd=run["Cmd"].texts(),
        env=_environment(run["Env"]),
        working_dir=run["WorkingDir"].text(),
        user=run["User"].text(),
        stop_signal=run["StopSignal"].text(),
        labels=run["Labels"].text_fields(),
        exposed_ports=tuple(run["ExposedPorts"].fields()),
        volumes=tuple(run["Volumes"].fields()),
        health_check=_health_check(run["Healthcheck"]),
        diff_ids=_diff_ids(document["rootfs"]),
        history=history,
    )


def _operating_system(name: str) -> str:
    if name not in ("", "linux"):
        raise InvalidArgumentError(
            f'image operating system "{name}" cannot be used on this platform: operating system is not supported'
        )
    return "linux"


def _environment(document: Document) -> tuple[str, ...]:
    environment = document.texts()
    for line in environment:
        if not line or line.startswith("="):
            raise InvalidArgumentError(f"{document.where}: {line!r} sets no variable")
    return environment


def _health_check(document: Document) -> HealthCheck:
    return HealthCheck(
        document["Test"].texts(),
        document["Interval"].integer(),
        document["Timeout"].integer(),
        document["StartPeriod"].integer(),
        document["StartInterval"].integer(),
        min(document["Retries"].integer(), _MAX_RETRIES),
    )


def _diff_ids(rootfs: Document) -> tuple[str, ...]:
    if (kind := rootfs["type"].text()) not in ("", "layers"):
        raise InvalidArgumentError(f"{rootfs.where} is of type {kind!r}, not of layers")
    diff_ids = rootfs["diff_ids"].texts()
    for diff_id in diff_ids:
        if not SHA256.fullmatch(diff_id):
            raise InvalidArgumentError(f"{rootfs.where}: {diff_id[:80]!r} is no sha256 digest")
    return diff_ids


def _history_record(document: Document) -> HistoryRecord:
    return HistoryRecord(
        _time_ns(document["created"]),
        document["created_by"].text(),
        document["comment"].text(),
        document["empty_layer"].flag(),
    )


def _time_ns(document: Document) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time; what lies before counts as unknown."""
    text = document.text()
    if not text:
        return 0
    match = _TIME.fullmatch(text)
    if not match:
        raise InvalidArgumentError(f"{document.where}: {text[:60]!r} is no time")
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        moment = datetime.fromisoformat(match[1].upper() + zone)
    except ValueError as error:
        raise InvalidArgumentError(f"{document.where}: {text[:60]!r} is no time: {error}") from error
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    nanoseconds = (since.days * 86400 + since.seconds) * 10**9 + int((match[2] or "0")[:9].ljust(9, "0"))
    return min(max(nanoseconds, 0), _MAX_TIME_NS)
