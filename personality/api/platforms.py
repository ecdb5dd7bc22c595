"""The platforms that clients ask for, by name ("linux/arm64/v8") or as the API's objects; an image has just one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from personality.errors import DockerError
from portlayer.v1 import types_pb2

_PART = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd"})
# An architecture without a variant is this one's.
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True)
class Platform:
    """What is empty was not asked for."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class _Object(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


def parse_platform(text: str) -> Platform | None:
    """Of `--platform` or the query's JSON object; None for an empty one. Raises DockerError 400."""
    if not text:
        return None
    if text.startswith("{"):
        try:
            given = msgspec.json.decode(text, type=_Object)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise DockerError(400, f"invalid platform: {error}") from error
        return _normal(given.os, given.architecture, given.variant)
    parts = text.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
        raise DockerError(400, f'"{text}" is an invalid OS/architecture/variant: it is like linux/arm64/v8')
    if len(parts) == 1:
        return _normal(text, "", "") if text.lower() in _SYSTEMS else _normal("linux", text, "")
    return _normal(*parts, *[""] * (3 - len(parts)))


def _normal(system: str, architecture: str, variant: str) -> Platform:
    architecture = architecture.lower()
    return Platform(system.lower(), _ALIASES.get(architecture, architecture), variant.lower())


def provides(image: types_pb2.Image, variant: str, wanted: Platform) -> bool:
    """Whether an image is for the platform; `variant` is what its configuration says."""
    default = _DEFAULT_VARIANTS.get(image.architecture, "")
    return (
        wanted.os in ("", image.os)
        and wanted.architecture in ("", image.architecture)
        and (not wanted.variant or wanted.variant == (variant or default))
    )
