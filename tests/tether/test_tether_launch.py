"""Launching on this host: real forks, no namespaces of their own."""

from __future__ import annotations

import os

import pytest
from tether_host import open_files

from tether.launch import LaunchError, Step
from tether.linux import MS_NODEV, MS_NOEXEC, MS_RDONLY
from tether.mounts import TMPFS_DEFAULT, parse_tmpfs_options
from tether.process import Launched, forked, launch
from tether.v1 import tether_pb2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent is root")


def _launch(*args: str, **fields: object) -> Launched:
    spec = tether_pb2.ProcessSpec(args=args, working_dir="/", **fields)  # type: ignore[arg-type]
    return launch(spec, forked(spec, lambda: None, "box"))


def _output(process: Launched) -> tuple[bytes, int]:
    os.set_blocking(process.stdio.stdout, True)
    data = b""
    try:
        while chunk := os.read(process.stdio.stdout, 4096):
            data += chunk
    except OSError:
        pass  # a terminal whose other end is closed
    for descriptor in (process.stdio.stdin, process.stdio.stdout, process.stdio.stderr):
        if descriptor is not None:
            os.close(descriptor)
    return data, os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


def test_output_and_exit_code() -> None:
    assert _output(_launch("sh", "-c", "echo $HOSTNAME $HOME; exit 3")) == (b"box /root\n", 3)


def test_terminal_has_its_size_and_is_the_controlling_one() -> None:
    size = tether_pb2.WindowSize(rows=33, columns=77)
    data, code = _output(_launch("sh", "-c", "stty size < /dev/tty; tty", terminal=True, window_size=size))
    lines = data.split(b"\r\n")
    assert lines[0] == b"33 77"
    assert lines[1].startswith(b"/dev/pts/")
    assert code == 0


def test_unprivileged_user_has_no_capabilities_left() -> None:
    data, _ = _output(_launch("grep", "^Cap", "/proc/self/status", user="65534:65534", capabilities=["CHOWN"]))
    values = {line.split(b":")[0]: int(line.split(b":")[1], 16) for line in data.splitlines()}
    assert values == {b"CapInh": 0, b"CapPrm": 0, b"CapEff": 0, b"CapBnd": 1, b"CapAmb": 0}


def test_root_has_exactly_the_set() -> None:
    data, _ = _output(_launch("grep", "^CapEff", "/proc/self/status", capabilities=["CHOWN", "KILL"]))
    assert int(data.split(b":")[1], 16) == 0b100001


@pytest.mark.parametrize(
    ("program", "step", "message"),
    [
        ("no-such-program", Step.EXEC, 'exec: "no-such-program": executable file not found in $PATH'),
        ("/no/such", Step.EXEC, 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/etc/passwd", Step.EXEC, 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_failures_have_words_and_leave_nothing(program: str, step: Step, message: str) -> None:
    before = open_files()
    with pytest.raises(LaunchError) as failure:
        _launch(program)
    assert (failure.value.step, failure.value.message) == (step, message)
    assert not open_files() - before


def test_tmpfs_options() -> None:
    assert parse_tmpfs_options("") == (TMPFS_DEFAULT, "")
    flags, data = parse_tmpfs_options("ro,exec,size=64m,mode=1777")
    assert flags == TMPFS_DEFAULT & ~MS_NOEXEC | MS_RDONLY
    assert flags & MS_NODEV
    assert data == "size=64m,mode=1777"
