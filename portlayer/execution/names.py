"""Names for containers that were given none."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container

from portlayer.errors import InvalidArgumentError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_QUALITIES = (
    "amber brisk calm candid clever cosmic crisp daring deft eager early fair fleet fond frank gentle glad golden "
    "grand "
    "hardy hazel honest humble jolly keen kind lively loyal lucid lunar mellow merry mighty modest neat nimble noble "
    "patient placid plucky proud quick quiet rapid ready rosy serene sharp silent silver smart snug solid spry stable "
    "steady stoic sunny swift tidy tranquil upbeat vivid warm wise witty zesty"
)
_THINGS = (
    "alder anchor aspen atlas badger barge beacon birch bison bridge brook cedar cliff comet condor coral crane "
    "delta "
    "dolphin dune eagle ember falcon fern finch fjord forge fox glacier grove harbor hawk heron ibis island juniper "
    "kestrel lagoon lark lynx maple marten meadow mesa orbit orca osprey otter pine plover puffin quarry raven reef "
    "ridge robin sable sail sequoia spruce stork summit swan tern thicket tundra walnut willow wren"
)


def check(name: str) -> None:
    """InvalidArgumentError when it cannot be a container's name."""
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidArgumentError(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def make_up(taken: Container[str]) -> str:
    """A free name."""
    while True:
        name = f"{secrets.choice(_QUALITIES.split())}_{secrets.choice(_THINGS.split())}"
        for candidate in (name, f"{name}{secrets.randbelow(1000)}"):
            if candidate not in taken:
                return candidate
