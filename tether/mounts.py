"""Mount options as people write them: "size=64m,noexec" into flags and data for mount(2)."""

from __future__ import annotations

from tether import linux

_SET = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "sync": linux.MS_SYNCHRONOUS,
    "noatime": linux.MS_NOATIME,
    "nodiratime": linux.MS_NODIRATIME,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
}
_CLEAR = {
    "rw": linux.MS_RDONLY,
    "suid": linux.MS_NOSUID,
    "dev": linux.MS_NODEV,
    "exec": linux.MS_NOEXEC,
    "async": linux.MS_SYNCHRONOUS,
    "atime": linux.MS_NOATIME,
    "diratime": linux.MS_NODIRATIME,
}
TMPFS_DEFAULT = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RELATIME


def parse_tmpfs_options(options: str) -> tuple[int, str]:
    """Flags and data of a tmpfs; Docker's defaults apply where the options do not say otherwise."""
    flags, data = TMPFS_DEFAULT, []
    for option in filter(None, options.split(",")):
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        else:
            data.append(option)
    return flags, ",".join(data)
