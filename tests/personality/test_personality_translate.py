"""What needs no server: durations, signals, statuses, tables of processes, samples."""

from __future__ import annotations

import time

import pytest

from personality.detach import DetachScanner, parse_keys
from personality.errors import DockerError
from personality.translate import describe, processes
from personality.translate.durations import human
from personality.translate.signals import parse_signal, signal_name
from personality.translate.stats import Sample, statistics
from portlayer.v1 import execution_pb2, types_pb2

_DAY = 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (2 * _DAY, "2 days"),
        (13 * _DAY, "13 days"),
        (14 * _DAY, "2 weeks"),
        (59 * _DAY, "8 weeks"),
        (60 * _DAY, "2 months"),
        (729 * _DAY, "24 months"),
        (730 * _DAY, "2 years"),
        (3650 * _DAY, "10 years"),
        (-5, "Less than a second"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human(seconds) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN", 34),
        ("RTMIN+5", 39),
        ("RTMAX-1", 63),
        ("sigrtmax", 64),
        ("64", 64),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-1", "SIG", "SIGNOPE", "RTMIN-1", "RTMAX+1", "RTMIN+31", "²", "9" * 5000]
)
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(DockerError) as caught:
        parse_signal(text)
    assert caught.value.status == 400


def test_names_of_signals() -> None:
    assert [signal_name(number) for number in (15, 34, 36, 0)] == ["SIGTERM", "SIGRTMIN", "SIGRTMIN+2", "0"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", b"\x10\x11"),
        ("ctrl-a", b"\x01"),
        ("CTRL-A", b"\x01"),
        ("ctrl-@,x", b"\x00x"),
        ("ctrl-[", b"\x1b"),
        ("a,b", b"ab"),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


def test_detach_keys_byte_by_byte() -> None:
    """However the client cuts its input, the same is passed on."""
    typed = b"x\x10y\x10\x10\x11z"
    scanner = DetachScanner(b"\x10\x11")
    passed = bytearray()
    for position in range(len(typed)):
        part, detached = scanner.scan(typed[position : position + 1])
        passed += part
        if detached:
            break
    assert (bytes(passed), position) == (b"x\x10y\x10", 5)
    assert DetachScanner(b"\x10\x11").scan(typed) == (b"x\x10y\x10", True)


def _container(status: types_pb2.ContainerStatus, exit_code: int = 0) -> types_pb2.Container:
    state = types_pb2.ContainerState(
        status=status, exit_code=exit_code, started_unix_ns=10 * 10**9, finished_unix_ns=20 * 10**9
    )
    return types_pb2.Container(state=state)


@pytest.mark.parametrize(
    ("status", "word", "text"),
    [
        (types_pb2.CONTAINER_STATUS_CREATED, "created", "Created"),
        # Between two runs, as it has run before.
        (types_pb2.CONTAINER_STATUS_STARTING, "exited", "Exited (3) 20 seconds ago"),
        (types_pb2.CONTAINER_STATUS_RUNNING, "running", "Up 30 seconds"),
        (types_pb2.CONTAINER_STATUS_STOPPING, "running", "Up 30 seconds"),
        (types_pb2.CONTAINER_STATUS_PAUSED, "paused", "Up 30 seconds (Paused)"),
        (types_pb2.CONTAINER_STATUS_EXITED, "exited", "Exited (3) 20 seconds ago"),
        (types_pb2.CONTAINER_STATUS_REMOVING, "removing", "Removal In Progress"),
        (types_pb2.CONTAINER_STATUS_DEAD, "dead", "Dead"),
        (types_pb2.CONTAINER_STATUS_UNSPECIFIED, "dead", "Dead"),
    ],
)
def test_statuses(status: types_pb2.ContainerStatus, word: str, text: str) -> None:
    container = _container(status, exit_code=3)
    assert describe.status_word(container) == word
    assert describe.status_text(container, now_ns=40 * 10**9) == text


def test_processes_of_all_kinds() -> None:
    """Kernel threads, users without a name, clocks that differ: a table all the same."""
    odd = [
        execution_pb2.ProcessInfo(pid=1, uid=1000, name="kthread", started_unix_ns=(time.time_ns() + 10**12)),
        execution_pb2.ProcessInfo(pid=2, user="me", args=["a b", "c"], cpu_ns=100 * 3600 * 10**9, started_unix_ns=1),
        execution_pb2.ProcessInfo(),
    ]
    for options in ("-ef", "aux", "-o pid,user,etime,time,stat,ni,nlwp,s,vsz,rss,comm,args,lstart,tty,c"):
        table = processes.table(odd, options)
        assert [len(row) for row in table["Processes"]] == [len(table["Titles"])] * 3
        assert all(isinstance(cell, str) for row in table["Processes"] for cell in row)
    named = processes.table(odd, "-o user,args,time")["Processes"]
    assert named[0][:2] == ["1000", "[kthread]"]
    assert named[1] == ["me", "a b c", "100:00:00"]


def test_samples() -> None:
    sample = Sample(
        time_unix_ns=10**9,
        pids=3,
        pids_limit=9,
        memory_usage_bytes=5,
        block=[execution_pb2.BlockDeviceStats(major=254, minor=1, read_bytes=7, write_bytes=8)],
    )
    body = statistics("id", "box", sample, None)
    assert body["pids_stats"] == {"current": 3, "limit": 9}
    assert body["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 254, "minor": 1, "op": "read", "value": 7},
        {"major": 254, "minor": 1, "op": "write", "value": 8},
    ]
    assert "networks" not in body
    card = execution_pb2.NetworkStats(
        interface="eth0", received_bytes=1, sent_bytes=2, received_packets=3, sent_packets=4, received_dropped=5
    )
    networks = statistics("id", "box", Sample(networks=[card]), None)["networks"]
    received = {"rx_bytes": 1, "rx_packets": 3, "rx_errors": 0, "rx_dropped": 5}
    assert networks == {"eth0": received | {"tx_bytes": 2, "tx_packets": 4, "tx_errors": 0, "tx_dropped": 0}}
    stopped = statistics("id", "box", Sample(), None)
    assert (stopped["memory_stats"], stopped["pids_stats"], stopped["read"]) == ({}, {}, "0001-01-01T00:00:00Z")
