"""A serial line carries bytes, not text: on a pseudo-terminal, which has the same line discipline."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator

import pytest
from tether_host import open_files

from tether import serial

EVERY_BYTE = bytes(range(256)) * 4


@pytest.fixture
def line() -> Iterator[tuple[int, int]]:
    """(the other end, what the agent opened); opened after someone else used it as a terminal."""
    other, slave = pty.openpty()
    descriptor = serial.open_raw(os.ttyname(slave))
    os.close(slave)
    yield other, descriptor
    os.close(descriptor)
    os.close(other)


def read_all(descriptor: int, size: int) -> bytes:
    os.set_blocking(descriptor, True)
    data = b""
    while len(data) < size:
        data += os.read(descriptor, size - len(data))
    return data


def test_every_byte_passes_both_ways(line: tuple[int, int]) -> None:
    other, descriptor = line
    os.write(other, EVERY_BYTE)
    assert read_all(descriptor, len(EVERY_BYTE)) == EVERY_BYTE
    os.write(descriptor, EVERY_BYTE)
    assert read_all(other, len(EVERY_BYTE)) == EVERY_BYTE


def test_nothing_is_echoed_and_reading_does_not_block(line: tuple[int, int]) -> None:
    other, descriptor = line
    os.write(other, b"\x03\x1c\x11\x13\r\n")
    assert os.read(descriptor, 100) == b"\x03\x1c\x11\x13\r\n"
    with pytest.raises(BlockingIOError):
        os.read(descriptor, 100)
    os.set_blocking(other, False)
    with pytest.raises(BlockingIOError):
        os.read(other, 100)


def test_the_line_is_8n1_without_flow_control(line: tuple[int, int]) -> None:
    iflag, oflag, cflag, lflag, ispeed, ospeed, _ = termios.tcgetattr(line[1])
    assert (oflag, lflag, ispeed, ospeed) == (0, 0, termios.B115200, termios.B115200)
    assert not iflag & (termios.IXON | termios.IXOFF | termios.ICRNL | termios.ISTRIP)
    assert cflag & termios.CSIZE == termios.CS8
    assert cflag & termios.CLOCAL
    assert not cflag & (termios.CRTSCTS | termios.PARENB | termios.CSTOPB)


def test_a_missing_port_is_told() -> None:
    with pytest.raises(OSError, match="second serial port"):
        serial.open_raw("/dev/no-such-port")


def test_what_is_no_serial_port_is_told() -> None:
    before = open_files()
    with pytest.raises(OSError, match="second serial port"):
        serial.open_raw("/dev/null")
    assert not open_files() - before
