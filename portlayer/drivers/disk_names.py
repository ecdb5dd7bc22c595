"""Names of image disks: what every datastore accepts."""

from __future__ import annotations

import re

from portlayer.errors import InvalidArgumentError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def checked(name: str) -> str:
    """`name`, which can be no path. InvalidArgumentError when it is not such a name."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(f"{name!r} is no name for an image disk")
    return name
