"""Dockerfile instructions that change an image's configuration, as `docker import --change` takes them."""

from __future__ import annotations

import json
import posixpath
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from portlayer.errors import InvalidArgumentError
from portlayer.storage.words import expand, expand_all, split

# The `config` object of an image configuration, in the making.
Config = dict[str, Any]

_CONTINUATION = re.compile(r"\\[ \t]*(?:\n|$)")
_SHELL = ["/bin/sh", "-c"]
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_PROTOCOLS = ("tcp", "udp", "sctp")
_MAX_PORT = 65535
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_LEAST_DURATION_NS = 10**6
_MAX_SIGNAL = 64
_MAY_BE_EMPTY = ("cmd", "entrypoint")
_ONE_ARGUMENT = ("stopsignal", "user", "workdir")
_HEALTH_FLAGS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def apply_changes(config: Config, changes: Sequence[str]) -> Config:
    """`config` with the instructions carried out, in order. InvalidArgumentError in Docker's words."""
    changed = dict(config)
    lines = list(_instructions("\n".join(changes)))
    for name, _ in lines:
        if name.lower() not in _HANDLERS:
            raise InvalidArgumentError(f"{name} is not a valid change command")
    cmd_set = False
    for name, rest in lines:
        if not rest and name.lower() not in _MAY_BE_EMPTY:
            amount = "exactly" if name.lower() in _ONE_ARGUMENT else "at least"
            raise InvalidArgumentError(f"{name.upper()} requires {amount} one argument")
        _HANDLERS[name.lower()](changed, rest)
        cmd_set |= name.lower() == "cmd"
        if name.lower() == "entrypoint" and not cmd_set:
            changed.pop("Cmd", None)  # it belonged to another entry point
    return changed


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and rest of each instruction: lines joined at backslashes, comments and empty lines left out."""
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    for line in _CONTINUATION.sub("", "\n".join(lines)).split("\n"):
        name, *rest = line.split(maxsplit=1) or [""]
        if name:
            yield name, "".join(rest).strip()


def _cmd(config: Config, rest: str) -> None:
    config["Cmd"] = _command(rest)


def _entrypoint(config: Config, rest: str) -> None:
    config["Entrypoint"] = _command(rest)


def _env(config: Config, rest: str) -> None:
    environment = _environment(config)
    environment |= _pairs("ENV", rest, dict(environment))
    config["Env"] = [f"{name}={value}" for name, value in environment.items()]


def _label(config: Config, rest: str) -> None:
    config["Labels"] = {**config.get("Labels", {}), **_pairs("LABEL", rest, _environment(config))}


def _expose(config: Config, rest: str) -> None:
    ports = dict(config.get("ExposedPorts", {}))
    for word in expand_all(split(rest), _environment(config)):
        range_, _, protocol = word.partition("/")
        protocol = protocol.lower() or "tcp"
        if protocol not in _PROTOCOLS:
            raise InvalidArgumentError(f"invalid proto: {protocol}")
        match = _PORTS.fullmatch(range_)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 < first <= last <= _MAX_PORT:
            raise InvalidArgumentError(f"invalid containerPort: {range_}")
        ports |= {f"{port}/{protocol}": {} for port in range(first, last + 1)}
    config["ExposedPorts"] = ports


def _on_build(config: Config, rest: str) -> None:
    trigger = rest.split(maxsplit=1)[0].upper()
    if trigger == "ONBUILD":
        raise InvalidArgumentError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidArgumentError(f"{trigger} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*config.get("OnBuild", []), rest]


def _stop_signal(config: Config, rest: str) -> None:
    name = expand(rest, _environment(config))
    known = {member.name.removeprefix("SIG") for member in signal.Signals}
    real_time = re.fullmatch(r"RTM(?:IN(?:\+\d{1,2})?|AX(?:-\d{1,2})?)", name.upper().removeprefix("SIG"), re.ASCII)
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0
    if name.upper().removeprefix("SIG") not in known and not real_time and not 0 < number <= _MAX_SIGNAL:
        raise InvalidArgumentError(f"invalid signal: {name}")
    config["StopSignal"] = name


def _user(config: Config, rest: str) -> None:
    config["User"] = expand(rest, _environment(config))


def _volume(config: Config, rest: str) -> None:
    paths = _json_list(rest)
    paths = expand_all(split(rest) if paths is None else paths, _environment(config))
    if not all(path.strip() for path in paths):
        raise InvalidArgumentError("VOLUME specified can not be an empty string")
    config["Volumes"] = {**config.get("Volumes", {}), **{path.strip(): {} for path in paths}}


def _working_dir(config: Config, rest: str) -> None:
    path = expand(rest, _environment(config))
    # normpath keeps two leading slashes, as POSIX allows; nobody means them.
    config["WorkingDir"] = "/" + posixpath.normpath(posixpath.join("/", config.get("WorkingDir", ""), path)).lstrip("/")


def _healthcheck(config: Config, rest: str) -> None:
    check: dict[str, Any] = {}
    words = rest
    while words.startswith("--"):
        flag, _, words = words.partition(" ")
        words = words.lstrip()
        _health_flag(check, flag.removeprefix("--"))
    kind, _, command = words.partition(" ")
    if kind.upper() == "NONE":
        if command.strip() or check:
            raise InvalidArgumentError("HEALTHCHECK NONE takes no arguments")
        check["Test"] = ["NONE"]
    elif kind.upper() == "CMD":
        listed = _json_list(command)
        if not command.strip() or listed == []:
            raise InvalidArgumentError("Missing command after HEALTHCHECK CMD")
        check["Test"] = ["CMD-SHELL", command.strip()] if listed is None else ["CMD", *listed]
    else:
        raise InvalidArgumentError(f"Unknown type {json.dumps(kind)} in HEALTHCHECK (try CMD)")
    config["Healthcheck"] = check


def _health_flag(check: dict[str, Any], flag: str) -> None:
    name, _, value = flag.partition("=")
    if name == "retries":
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise InvalidArgumentError(f"strconv.ParseInt: parsing {json.dumps(value)}: invalid syntax")
        check["Retries"] = int(value)
    elif name in _HEALTH_FLAGS:
        check[_HEALTH_FLAGS[name]] = _duration_ns(name, value)
    else:
        raise InvalidArgumentError(f"Unknown flag: {name}")


def _duration_ns(name: str, text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 40:
        fault = "missing unit in" if text.isdigit() else "invalid"
        raise InvalidArgumentError(f"time: {fault} duration {json.dumps(text)}")
    total = round(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))
    if 0 < total < _LEAST_DURATION_NS:
        raise InvalidArgumentError(f'Interval "{name}" cannot be less than 1ms')
    return total


def _command(rest: str) -> list[str]:
    if not rest:
        return []
    listed = _json_list(rest)
    return [*_SHELL, rest] if listed is None else listed


def _json_list(text: str) -> list[str] | None:
    """The exec form; None for whatever is no JSON list, which is the shell form."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in value):
        raise InvalidArgumentError("when using JSON array syntax, arrays must be comprised of strings only")
    return list(value)


def _pairs(instruction: str, rest: str, environment: dict[str, str]) -> dict[str, str]:
    """name=value ..., or the older form of one name and the rest of the line as its value."""
    words = split(rest)
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise InvalidArgumentError(f"{instruction} must have two arguments")
        words = [f"{name}={value.strip()}"]
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgumentError(
                f"Syntax error - can't find = in {json.dumps(word)}. Must be of the form: name=value"
            )
        name = expand(name, environment)
        if not name:
            raise InvalidArgumentError(f"{instruction} names can not be blank")
        pairs[name] = expand(value, environment)
    return pairs


def _environment(config: Config) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in config.get("Env", []))


_HANDLERS: dict[str, Callable[[Config, str], None]] = {
    "cmd": _cmd,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "healthcheck": _healthcheck,
    "label": _label,
    "onbuild": _on_build,
    "stopsignal": _stop_signal,
    "user": _user,
    "volume": _volume,
    "workdir": _working_dir,
}
