"""`docker top`: the container's processes in the columns of ps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from personality.errors import DockerError
from portlayer.v1 import execution_pb2

Process = execution_pb2.ProcessInfo
_FULL = ("uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_LONG_USER = ("user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "bsdtime", "command")
_SHORT = ("pid", "tty", "time", "comm")
_ALIASES = {
    "args": "command", "ucmd": "comm", "tname": "tty", "tt": "tty", "%cpu": "pcpu", "%mem": "pmem",
    "euser": "user", "ruser": "user", "euid": "uid_number", "vsize": "vsz", "rssize": "rss", "s": "state",
    "cputime": "time", "ni": "nice", "nlwp": "thcount", "lstart": "start", "etimes": "etime",
}  # fmt: skip


def table(processes: Sequence[Process], ps_args: str) -> dict[str, list[str] | list[list[str]]]:
    """Titles and rows. Raises DockerError 400 for ps options that are not understood."""
    columns = _columns(ps_args)
    return {
        "Titles": [_COLUMNS[name][0] for name in columns],
        "Processes": [[_COLUMNS[name][1](process) for name in columns] for process in processes],
    }


def _columns(ps_args: str) -> tuple[str, ...]:
    words = ps_args.replace(",", " , ").split() or ["-ef"]
    chosen: list[str] = []
    columns: tuple[str, ...] = _SHORT
    expecting = False
    for word in words:
        if word == ",":
            expecting = bool(chosen)
        elif word in ("-o", "o", "--format", "-eo", "-Ao", "-axo", "axo"):
            expecting = True
        elif expecting:
            chosen.append(_name(word))
            expecting = False
        elif word.startswith("-o") and len(word) > 2:
            chosen.append(_name(word[2:]))
        elif "u" in word and not word.startswith("-"):
            columns = _LONG_USER
        elif word.startswith("-") and "f" in word:
            columns = _FULL
        elif set(word) - set("-aAexw"):
            raise DockerError(400, f"ps options {ps_args!r} are not understood: use -ef, aux, or -o with columns")
    return tuple(chosen) or columns


def _name(word: str) -> str:
    name = word.partition("=")[0].lower()
    name = _ALIASES.get(name, name)
    if name not in _COLUMNS:
        raise DockerError(400, f'error: unknown user-defined format specifier "{word}"')
    return name


def _clock(nanoseconds: int) -> str:
    seconds = nanoseconds // 1_000_000_000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _started(process: Process) -> str:
    moment = time.localtime(process.started_unix_ns / 1e9)
    today = time.localtime()[:3] == moment[:3]
    return time.strftime("%H:%M" if today else "%b%d", moment)


def _age_s(process: Process) -> int:
    return max(0, int(time.time() - process.started_unix_ns / 1e9))


def _share(process: Process) -> float:
    return 100 * process.cpu_ns / 1e9 / max(1, _age_s(process))


def _command(process: Process) -> str:
    return " ".join(process.args) or f"[{process.name}]"


_COLUMNS: dict[str, tuple[str, Callable[[Process], str]]] = {
    "uid": ("UID", lambda one: one.user or str(one.uid)),
    "uid_number": ("EUID", lambda one: str(one.uid)),
    "user": ("USER", lambda one: one.user or str(one.uid)),
    "pid": ("PID", lambda one: str(one.pid)),
    "ppid": ("PPID", lambda one: str(one.parent_pid)),
    "c": ("C", lambda one: str(min(99, int(_share(one))))),
    "stime": ("STIME", _started),
    "start": ("START", _started),
    "etime": ("ELAPSED", lambda one: _clock(_age_s(one) * 1_000_000_000)),
    "tty": ("TTY", lambda one: one.terminal),
    "time": ("TIME", lambda one: _clock(one.cpu_ns)),
    "bsdtime": ("TIME", lambda one: f"{one.cpu_ns // 60_000_000_000}:{one.cpu_ns // 1_000_000_000 % 60:02d}"),
    "cmd": ("CMD", _command),
    "command": ("COMMAND", _command),
    "comm": ("COMMAND", lambda one: one.name),
    "pcpu": ("%CPU", lambda one: f"{_share(one):.1f}"),
    "pmem": ("%MEM", lambda one: "0.0"),
    "vsz": ("VSZ", lambda one: str(one.virtual_bytes >> 10)),
    "rss": ("RSS", lambda one: str(one.resident_bytes >> 10)),
    "stat": ("STAT", lambda one: one.state),
    "state": ("S", lambda one: one.state),
    "nice": ("NI", lambda one: str(one.nice)),
    "thcount": ("THCNT", lambda one: str(one.threads)),
}
