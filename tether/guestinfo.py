"""What the agent may ask of the hypervisor it runs on: VMware's GuestRPC, over vsock.

The hypervisor listens at CID 0, port 976, and hears privileged commands from privileged source ports alone, which root
may bind. A message either way is a map: its length (32 bits, big-endian, as all numbers here), then fields of a type,
an id and a value. The map of a request holds a number (field 1, what kind of packet: 1 for data) and a string (field 2,
the command); of a 64-bit number the lower half comes first. The answer's string begins with "1 " for success, "0 " for
failure. (Facts: open-vm-tools, lib/rpcChannel/simpleSocket.c, lib/dataMap/dataMap.c, guestrpc/tclodefs.h.)

The older way, the "backdoor" at I/O port 0x5658, is not taken: on anything but VMware's hypervisors it is a fault that
would end process 1. Nothing here trusts the answers further than that they come from the hypervisor: they are bounded.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

_CID, _PORT = 0, 976
_PRIVILEGED_PORTS = range(1023, 0, -1)
_NUMBER, _STRING = 1, 2
_KIND, _PAYLOAD = 1, 2
_DATA = 1
_MAX_REPLY_BYTES = 128 * 1024
_PATIENCE_S = 5.0
# As the hypervisor says it.
_NO_VALUE = b"No value found"
# Something that has no value, or one that nobody minds: it is asked for to hear whether the hypervisor answers.
_ANYTHING = "guestinfo.vch.present"


class RefusedError(OSError):
    """The hypervisor has answered, and said no."""


class Hypervisor:
    """One connection. All methods raise OSError; RefusedError, which is one, for the hypervisor's own refusals."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(_PATIENCE_S)

    def fileno(self) -> int:
        """To wait on for an answer."""
        return self._connection.fileno()

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()

    def get(self, key: str) -> bytes | None:
        """A value of the VM's extraConfig, "guestinfo.x"; None when there is none."""
        self._send(f"info-get {key}")
        try:
            return self._receive()
        except RefusedError as refusal:
            if refusal.strerror == _NO_VALUE.decode():
                return None
            raise

    def ask_to_freeze(self) -> None:
        """The VM will stand still in a moment, for good; what goes on from there are its instant clones.

        In each of them the connection has an answer, or is cut, since it was another VM's: `hear_of_freezing`.
        """
        self._send("instantclone.freeze")

    def hear_of_freezing(self) -> None:
        """Call when there is something to read. Raises RefusedError when nothing was frozen."""
        try:
            self._receive()
        except RefusedError:
            raise
        except OSError:
            return

    def _send(self, command: str) -> None:
        payload = command.encode()
        fields = struct.pack(">IIII", _NUMBER, _KIND, _DATA, 0) + struct.pack(">III", _STRING, _PAYLOAD, len(payload))
        self._connection.sendall(struct.pack(">I", len(fields) + len(payload)) + fields + payload)

    def _receive(self) -> bytes:
        (size,) = struct.unpack(">I", self._read(4))
        if size > _MAX_REPLY_BYTES:
            raise OSError(errno.EMSGSIZE, f"the hypervisor's answer has {size} bytes")
        try:
            payload = dict(_strings(self._read(size)))[_PAYLOAD]
        except (KeyError, struct.error):
            raise OSError(errno.EBADMSG, "the hypervisor's answer is not readable") from None
        status, _, text = payload.partition(b" ")
        if status == b"1":
            return text
        raise RefusedError(errno.EPERM, text[:200].decode("ascii", "replace"))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self._connection.recv(size - len(data))
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "the hypervisor has hung up")
            data += more
        return bytes(data)


def _strings(fields: bytes) -> Iterator[tuple[int, bytes]]:
    """(id, value) of each string. Raises struct.error when the fields are cut off."""
    position = 0
    while position < len(fields):
        kind, number = struct.unpack_from(">II", fields, position)
        position += 8
        if kind == _NUMBER:
            position += 8
            continue
        (size,) = struct.unpack_from(">I", fields, position)
        position += 4 + size
        if kind != _STRING or position > len(fields):
            raise struct.error("no such field")
        yield number, fields[position - size : position]


def connect(dial: Callable[[], socket.socket] | None = None) -> Hypervisor:
    """Reaches the hypervisor, and hears it answer. Raises OSError when there is none that knows GuestRPC."""
    hypervisor = Hypervisor((dial or _dial)())
    try:
        hypervisor.get(_ANYTHING)
    except OSError:
        hypervisor.close()
        raise
    return hypervisor


def _dial() -> socket.socket:
    """From the first source port that works: others are in use, or just closed, which the hypervisor may not know."""
    for port in _PRIVILEGED_PORTS:
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_PATIENCE_S)
        try:
            connection.bind((socket.VMADDR_CID_ANY, port))
            connection.connect((_CID, _PORT))
        except OSError as error:
            connection.close()
            if error.errno in (errno.EADDRINUSE, errno.ECONNRESET):
                continue
            raise OSError(error.errno or errno.ETIMEDOUT, f"no GuestRPC here: {error.strerror or error}") from error
        return connection
    raise OSError(errno.EADDRINUSE, "no GuestRPC here: no source port works")
