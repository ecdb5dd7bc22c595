"""The line to the host over a 16550 serial port: a tty that must carry bytes, not text.

Unlike a virtio-serial port it has no end that opens or closes: bytes that are sent while nobody listens are lost, and
the link layer finds that out.
"""

from __future__ import annotations

import os
import termios
from typing import Any


def open_raw(device: str) -> int:
    """A descriptor that passes every byte as it is, both ways. Raises OSError, with what to do, when there is no port.

    Eight bits, no parity; no echo, no signals, no change of line ends, no flow control by characters or wires: modem
    lines are ignored, since what a hypervisor reports on them depends on whether its end is connected, and a hang-up
    must not end what the agent serves. The speed is the port's highest: a virtual port does not keep
    it, but the kernel's driver reckons with it.
    """
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the VM needs a second serial port", device) from error
    try:
        _make_raw(descriptor)
    except termios.error as error:  # the kernel lists four ports, whether they are there or not
        os.close(descriptor)
        raise OSError(error.args[0], f"{error.args[1]}; the VM needs a second serial port", device) from error
    return descriptor


def _make_raw(descriptor: int) -> None:
    speed = termios.B115200
    control = termios.CS8 | termios.CREAD | termios.CLOCAL
    modes: list[Any] = termios.tcgetattr(descriptor)
    characters = modes[6]
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    modes[:6] = termios.IGNBRK | termios.IGNPAR, 0, control, 0, speed, speed
    termios.tcsetattr(descriptor, termios.TCSANOW, modes)
    termios.tcflush(descriptor, termios.TCIOFLUSH)
