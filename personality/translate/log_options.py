"""`--log-driver` and `--log-opt`: where a container's log goes, and what `docker logs --details` says of its lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote_plus

from personality.errors import DockerError
from personality.translate import sizes
from personality.translate.bodies import LogConfig
from portlayer.v1 import types_pb2

_DRIVERS = frozenset({"", "json-file", "local", "none"})
_OPTIONS = frozenset(
    {
        *("max-size", "max-file", "compress", "mode", "max-buffer-size"),
        *("labels", "labels-regex", "env", "env-regex", "tag"),
    }
)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)
_MAX_FILES = 1000
_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")


def log_config(given: LogConfig | None) -> types_pb2.LogConfig:
    """Raises DockerError 400."""
    kind = (given.type if given else "") or ""
    if kind not in _DRIVERS:
        raise DockerError(400, f"logger: no log driver named '{kind}' is registered")
    options = (given.config if given else None) or {}
    unknown = set(options) - _OPTIONS
    if unknown:
        raise DockerError(400, f"unknown log opt '{sorted(unknown)[0]}' for {kind or 'json-file'} log driver")
    files = options.get("max-file")
    if files is not None and not _COUNT.fullmatch(files):
        raise DockerError(400, f"invalid max-file: {files}")
    if files is not None and int(files) < 1:
        raise DockerError(400, "max-file cannot be less than 1")
    if (mode := options.get("mode") or "blocking") not in ("blocking", "non-blocking"):
        raise DockerError(400, f"logger: logging mode not supported: {mode}")
    for name in ("labels-regex", "env-regex"):
        _pattern(name, options.get(name, ""))
    _tag(options.get("tag", ""), dict.fromkeys(_TAG_FIELDS, ""))
    size = options.get("max-size", "-1")
    return types_pb2.LogConfig(
        max_file_bytes=sizes.parse_size(size) if size != "-1" else 0,
        max_files=min(int(files or 0), _MAX_FILES),
        disabled=kind == "none",
    )


def details(container: types_pb2.Container, options: Mapping[str, str]) -> bytes:
    """What stands before each line of `docker logs --details`: the labels and variables that were asked for."""
    environment = dict(entry.partition("=")[::2] for entry in container.spec.process.env)
    chosen = {
        **_chosen(container.spec.labels, options.get("labels", ""), options.get("labels-regex", "")),
        **_chosen(environment, options.get("env", ""), options.get("env-regex", "")),
    }
    if tag := options.get("tag"):
        chosen["tag"] = _tag(tag, _tag_fields(container))
    pairs = (f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(chosen.items()))
    return ",".join(pairs).encode() + b" "


class Detailed:
    """Puts the same text before each line of each stream, behind the line's time if it has one."""

    def __init__(self, prefix: bytes, *, stamped: bool) -> None:
        self._prefix = prefix
        self._stamped = stamped
        # Streams whose last piece ended within a line.
        self._within: set[int] = set()

    def lines(self, stream: int, data: bytes) -> bytes:
        """The next piece of a stream."""
        first, *rest = data.split(b"\n")
        last = rest.pop() if rest else b""
        marked = [first if stream in self._within else self._mark(first), *map(self._mark, rest)]
        ends_within = not data.endswith(b"\n")
        if b"\n" in data:
            marked.append(self._mark(last) if last else b"")
        self._within.add(stream) if ends_within else self._within.discard(stream)
        return b"\n".join(marked)

    def _mark(self, line: bytes) -> bytes:
        stamp, space, text = line.partition(b" ") if self._stamped else (b"", b"", line)
        return stamp + space + self._prefix + text


def _chosen(values: Mapping[str, str], names: str, pattern: str) -> dict[str, str]:
    matching = _pattern("", pattern) if pattern else None
    wanted = set(names.split(",")) if names else set()
    return {key: value for key, value in values.items() if key in wanted or (matching and matching.search(key))}


def _pattern(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise DockerError(400, f"invalid {option}: {error}") from error


_TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName", "Command")


def _tag_fields(container: types_pb2.Container) -> dict[str, str]:
    process = container.spec.process
    values = (
        container.id[:12],
        container.id,
        container.name,
        container.image_id[:12],
        container.image_id,
        container.spec.image,
        "docker",
        " ".join([*process.entrypoint, *process.cmd]),
    )
    return dict(zip(_TAG_FIELDS, values, strict=True))


def _tag(template: str, fields: Mapping[str, str]) -> str:
    """The template with its fields; DockerError 400 for anything of Go's templates beyond them."""

    def field(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise DockerError(400, f"invalid log tag {template!r}: there is no field .{match[1]}")
        return fields[match[1]]

    text = _FIELD.sub(field, template)
    if "{{" in template and _FIELD.sub("", template).find("{{") >= 0:
        raise DockerError(400, f"invalid log tag {template!r}: only fields such as {{{{.Name}}}} are served")
    return text
