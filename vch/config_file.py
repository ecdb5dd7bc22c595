"""`--config FILE`: the options of a command, as TOML. What is said on the command line wins.

    target = "vch@vsphere.local@vcenter.example.org"
    compute-resource = "Cluster 1"
    container-network = ["web:VLAN 7", "lab:VLAN 8"]
    affinity-group = true

Keys are the long options without their dashes. Relative paths are beside the file. One file is for all commands that
take one: what is an option of another is passed over.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import click

from vch.errors import ConfigurationError

# These say which VCH is meant, how the command runs, or are between programs.
_NOT_IN_FILES = {"config", "name", "state_dir", "detach", "ready_fd", "password_fd", "as_json"}


def config_option(command: Any) -> Any:
    """Decorates a command with --config."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_use,
        help='TOML file with these options: compute-resource = "C1"; the command line wins',
    )(command)


def _use(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    try:
        with file.open("rb") as opened:
            content = tomllib.load(opened)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    known = _keys(context.command)
    others = [_keys(command) for command in _siblings(context)]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            if any(key in keys for keys in others):
                continue
            raise ConfigurationError(f"{file}: {key!r} is no option{_hint(key, known)}")
        parameter = known[key]
        values[str(parameter.name)] = _checked(file, key, value, parameter)
    context.default_map = {**(context.default_map or {}), **values}


def _keys(command: click.Command) -> dict[str, click.Option]:
    """What a file may say to a command."""
    return {
        option.removeprefix("--"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in _NOT_IN_FILES and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }


def _siblings(context: click.Context) -> list[click.Command]:
    """The other commands of the program that take a file."""
    program = context.parent.command if context.parent else None
    commands = program.commands.values() if isinstance(program, click.Group) else ()
    return [one for one in commands if any(parameter.name == "config" for parameter in one.params)]


def _checked(file: Path, key: str, value: Any, parameter: click.Option) -> Any:
    if parameter.multiple:
        values = value if isinstance(value, list) else [value]
        return [_scalar(file, key, one, parameter) for one in values]
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise ConfigurationError(f"{file}: {key} is true or false")
        return value
    return _scalar(file, key, value, parameter)


def _scalar(file: Path, key: str, value: Any, parameter: click.Option) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigurationError(f"{file}: {key} is a text or a number")
    if isinstance(parameter.type, click.Path):
        return str(file.absolute().parent / str(value))
    return str(value)


def _hint(key: str, known: dict[str, click.Option]) -> str:
    close = difflib.get_close_matches(key.replace("_", "-").lower(), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(known))}"
