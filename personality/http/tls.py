"""TLS for TCP listeners, without input or output of its own.

asyncio's own TLS cannot half-close, which a hijacked connection lives on; so the layer is made from ssl's memory
buffers: close_notify is the half-close, in either direction.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

_READ_BYTES = 256 << 10


def server_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Mutual TLS, 1.2 or newer: only clients with a certificate that `authority` signed get through.

    Raises OSError or ssl.SSLError when a file cannot be read or holds something else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=authority)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class TlsLayer:
    """The server's end of one TLS connection: ciphertext in, plaintext out, and the other way round.

    After each call, data_to_send() holds what must go to the peer (also after an error: the alert).
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._open = False
        self._close_sent = False
        self.peer_closed = False

    @property
    def peer_name(self) -> str:
        """The common name in the client's certificate; "" when it has none, and before the handshake."""
        # {"subject": ((("commonName", "anna"),), ...)}
        certificate: dict[str, Any] = (self._connection.getpeercert() if self._open else None) or {}
        subject = [pair for names in certificate.get("subject", ()) for pair in names]
        return next((value for key, value in subject if key == "commonName"), "")

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the peer and returns the plaintext in them. Sets peer_closed at its close_notify.

        Raises ssl.SSLError when the handshake fails (no or a foreign certificate) or the bytes are not TLS.
        """
        self._incoming.write(data)
        plaintext = bytearray()
        try:
            if not self._open:
                self._connection.do_handshake()
                self._open = True
            while not self.peer_closed:
                chunk = self._connection.read(_READ_BYTES)
                self.peer_closed = not chunk
                plaintext += chunk
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.peer_closed = True
        return bytes(plaintext)

    def encrypt(self, data: bytes) -> None:
        """Queues plaintext for the peer; the handshake is done by then, as the peer speaks first."""
        view = memoryview(data)
        while view:
            view = view[self._connection.write(view) :]

    def close(self) -> None:
        """Queues close_notify: nothing more is written, the peer may go on."""
        if not self._open or self._close_sent:
            return
        self._close_sent = True
        # The peer need not have closed yet: close_notify is queued all the same.
        with contextlib.suppress(ssl.SSLWantReadError):
            self._connection.unwrap()

    def data_to_send(self) -> bytes:
        """Drains the ciphertext queued for the peer."""
        return self._outgoing.read()
