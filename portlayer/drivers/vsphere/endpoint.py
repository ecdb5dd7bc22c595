"""Where vSphere is and how its certificate is checked.

A certificate is trusted because a CA says so (the system's, or one from a file), or because the user names its
SHA-256 thumbprint. pyvmomi's own thumbprint check is not used: after a mismatch its context stays without verification
and the next call succeeds. Here the named certificate itself becomes the only trust anchor, so every connection of
whatever kind (SOAP, datastore) is checked by OpenSSL.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from portlayer.errors import DriverError, InvalidArgumentError

_CONNECT_TIMEOUT_S = 30.0
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Credentials:
    """An account. The password never appears in a representation."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """A vCenter or ESXi. `thumbprint`: SHA-256 of its certificate, hexadecimal, colons allowed; `ca_file` in PEM."""

    host: str
    port: int = 443
    ca_file: Path | None = None
    thumbprint: str | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """A context that trusts this endpoint alone; talks to it once to find out whether it is to be trusted.

    Blocks. DriverError when it cannot be reached or is not to be trusted; the message then has its thumbprint.
    """
    if endpoint.thumbprint is not None:
        return _pinned(endpoint, endpoint.thumbprint)
    try:
        context = ssl.create_default_context(cafile=str(endpoint.ca_file) if endpoint.ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgumentError(f"the CA file {endpoint.ca_file} cannot be used: {error}") from error
    try:
        with _connected(endpoint, context):
            return context
    except ssl.SSLCertVerificationError as error:
        shown = thumbprint_of(_certificate(endpoint))
        raise DriverError(
            f"the certificate of {endpoint.host}:{endpoint.port} is not trusted: {error.verify_message}. Its SHA-256"
            f" thumbprint is {shown}. If that is the right one, name it (--thumbprint), or the CA (--ca)"
        ) from error


def thumbprint_of(certificate: bytes) -> str:
    """SHA-256 of a certificate in DER, as vCenter shows it."""
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(certificate).digest())


def _pinned(endpoint: Endpoint, thumbprint: str) -> ssl.SSLContext:
    wanted = re.sub(r"[:\s]", "", thumbprint).upper()
    if not re.fullmatch(r"[0-9A-F]{64}", wanted):
        raise InvalidArgumentError(f"--thumbprint {thumbprint!r} is no SHA-256 thumbprint: 64 hexadecimal digits")
    certificate = _certificate(endpoint)
    shown = thumbprint_of(certificate)
    if not hmac.compare_digest(shown.replace(":", ""), wanted):
        raise DriverError(
            f"the certificate of {endpoint.host}:{endpoint.port} is another one: its SHA-256 thumbprint is {shown}"
        )
    return _trusting(certificate)


def lease_context(host: Endpoint, thumbprint: str) -> ssl.SSLContext:
    """A context that trusts the host of a lease, by the thumbprint that vCenter's lease names: SHA-1, or SHA-256.

    Blocks. DriverError when the host shows another certificate, or none; from OSError when it is out of reach. SHA-1 is
    what the API has had; to deceive it would take a second certificate for a given thumbprint, not two that are alike.
    """
    wanted, certificate = thumbprint.replace(":", "").lower(), _certificate(host)
    algorithm = "sha256" if len(wanted) == _SHA256_DIGITS else "sha1"
    shown = hashlib.new(algorithm, certificate, usedforsecurity=False).hexdigest()
    if not hmac.compare_digest(shown.encode(), wanted.encode()):
        raise DriverError(f"the certificate of {host.host}:{host.port} is not the one that vCenter says it has")
    return _trusting(certificate)


def _trusting(certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # this very certificate, whatever names are in it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=certificate)
    return context


def _certificate(endpoint: Endpoint) -> bytes:
    """Its certificate in DER, not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connected(endpoint, context) as connection:
        certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise DriverError(f"{endpoint.host}:{endpoint.port} shows no certificate")
    return certificate


def _connected(endpoint: Endpoint, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Closes itself as a context manager."""
    try:
        plain = socket.create_connection((endpoint.host, endpoint.port), _CONNECT_TIMEOUT_S)
    except OSError as error:
        raise DriverError(f"{endpoint.host}:{endpoint.port} cannot be reached: {error}") from error
    try:
        return context.wrap_socket(plain, server_hostname=endpoint.host)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise
    except OSError as error:
        plain.close()
        raise DriverError(f"no TLS with {endpoint.host}:{endpoint.port}: {error}") from error
