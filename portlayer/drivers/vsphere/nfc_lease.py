"""A lease to send a disk to an ESXi host: what ImportVApp gives (HttpNfcLease).

    initializing --> ready --(POST, progress)--> complete
         |             |
         +-------------+--> error, aborted

vSphere tells by a long poll when a lease is ready. The disk then goes to the host that the lease names, which is
known by the thumbprint that the lease has of it. A lease lives as long as somebody says how far he is, and ends with
its session.

Facts: vSphere Web Services API, HttpNfcLease; how the disk is sent: govmomi, nfc/lease.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import faults
from portlayer.drivers.vsphere.endpoint import Endpoint, lease_context
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.stream_vmdk import StreamVmdk
from portlayer.drivers.vsphere.updates import Updates
from portlayer.drivers.vsphere.upload import TIMEOUT, AgainError, Progress, is_distrust, opened, refusal, said
from portlayer.errors import ConflictError, DriverError, NotFoundError, PortLayerError

_PATHS = ["state", "info", "error"]
# How often it is said how far a disk is, seconds: vSphere's leases end after 300 without a word.
RENEW_S = 10.0
# For the VM of an import to be made.
_READY_S = 600.0
_OK = (200, 201, 204)
_OVER = (401, 403, 404)
_TYPE = "application/x-vnd.vmware-streamVmdk"
_Collector = vmodl.query.PropertyCollector
# By the names that the API has for them.
_Digests = dict[str, "hashlib._Hash"]
_log = logging.getLogger(__name__)


class Lease:
    """Of the import of a VM with one disk. `what` is being done: it begins the messages of errors.

    Methods raise PortLayerError, and upload.AgainError for what may go well with another lease.
    """

    def __init__(self, session: Session, lease: vim.HttpNfcLease, what: str) -> None:
        self._session = session
        self._lease = lease
        self._what = what

    async def ready(self) -> vim.HttpNfcLease.Info:
        """Waits until the VM is made. The error is the one that making it ended with."""
        state, updates = _State(self._lease, self._what), Updates(self._session)
        patience = asyncio.create_task(self._session.pause(_READY_S))
        try:
            await updates.add(state)
            either: set[asyncio.Future[Any]] = {state.ready, patience}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if state.ready.done():
                return state.ready.result()
            await patience
            raise AgainError(f"no lease was ready within {_READY_S:g} s")
        finally:
            patience.cancel()
            await asyncio.gather(patience, return_exceptions=True)
            await updates.close()

    async def send(
        self, info: vim.HttpNfcLease.Info, image: Path, disk: StreamVmdk, on_progress: Progress | None
    ) -> None:
        """The whole disk. What the host says that it received is compared with what was sent."""
        device = next((one for one in info.deviceUrl or () if one.disk is not False), None)
        if device is None:
            raise DriverError(f"{self._what}: the lease names no disk")
        digests: _Digests = {"sha1": hashlib.sha1(usedforsecurity=False), "sha256": hashlib.sha256()}
        sent, progress = 0, said(self._what, disk.length, on_progress)

        def progressed(count: int) -> None:
            nonlocal sent
            sent = count
            progress(count)

        sending = asyncio.create_task(self._post(device, _pieces(image, disk, digests, progressed), disk.length))
        renewing = asyncio.create_task(self._renew(lambda: 100 * sent // disk.length))
        try:
            await asyncio.wait({sending, renewing}, return_when=asyncio.FIRST_COMPLETED)
            await (sending if sending.done() else renewing)
        finally:
            sending.cancel()
            renewing.cancel()
            await asyncio.gather(sending, renewing, return_exceptions=True)
        await self._compare(device.key, digests)

    async def complete(self) -> None:
        """The VM is there from now on; where it is not, whoever looks at it finds out."""
        with contextlib.suppress(AgainError):  # an answer to the same call was lost
            await self._call(self._lease.HttpNfcLeaseComplete)

    async def abort(self) -> None:
        """vSphere removes what it has made. No effect on a lease that is over, or gone."""
        with contextlib.suppress(PortLayerError, AgainError):
            await self._call(self._lease.HttpNfcLeaseAbort)

    async def _post(self, device: Any, pieces: AsyncGenerator[bytes, None], length: int) -> None:
        host = self._host(device.url)
        headers = {"Content-Length": str(length), "Content-Type": _TYPE}
        url = urlsplit(device.url)._replace(scheme="", netloc="").geturl()
        try:
            context = await self._trusting(host, device.sslThumbprint)
            async with (
                contextlib.aclosing(pieces),
                httpx.AsyncClient(verify=context, timeout=TIMEOUT, trust_env=False) as client,
                client.stream("POST", f"{host.url}{url}", headers=headers, content=pieces) as answer,
            ):
                if answer.status_code in _OVER:
                    raise AgainError(f"the host knows no such lease: HTTP {answer.status_code}")
                if answer.status_code not in _OK:
                    raise await refusal(answer, self._what)
        except httpx.TransportError as error:
            if is_distrust(error):
                raise DriverError(f"{self._what}: {error}") from error
            raise AgainError(str(error) or type(error).__name__) from error
        except OSError as error:
            raise DriverError(f"{self._what}: {error}") from error

    async def _trusting(self, host: Endpoint, thumbprint: str | None) -> ssl.SSLContext:
        context: ssl.SSLContext = self._session.tls
        try:
            return await asyncio.to_thread(lease_context, host, thumbprint) if thumbprint else context
        except DriverError as error:
            if faults.caused_by(error, OSError):
                raise AgainError(str(error)) from error  # another lease may be for another host
            raise

    def _host(self, told: str) -> Endpoint:
        """Of the URL of a lease; "*" stands for where we have the lease from."""
        url, ours = urlsplit(told), self._session.endpoint
        if url.scheme != "https" or not url.hostname:
            raise DriverError(f"{self._what}: the lease names {told}, which is no place for HTTPS")
        if url.hostname == "*":
            return Endpoint(ours.host, url.port or ours.port)
        return Endpoint(url.hostname, url.port or 443)

    async def _renew(self, percent: Callable[[], int]) -> None:
        """Until it is cancelled, or the lease is over. Longer than a lease lasts vSphere may not be away."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._call(self._lease.HttpNfcLeaseProgress, percent())
            except PortLayerError as error:
                _log.info("%s: the lease was not renewed: %s", self._what, error)

    async def _compare(self, key: str, digests: _Digests) -> None:
        """By what the host says. Its size is left alone: whether that is of what came or of the disk, nobody says."""
        entries = await self._call(self._lease.HttpNfcLeaseGetManifest)
        entry = next((one for one in entries or () if one.key == key), None)
        told = [] if entry is None else [("sha1", entry.sha1), (str(entry.checksumType).lower(), entry.checksum)]
        known = [(digests[kind].hexdigest(), value.lower()) for kind, value in told if value and kind in digests]
        if not known:
            _log.info("%s: the host does not say what it received", self._what)
        if any(ours != theirs for ours, theirs in known):
            raise AgainError("what the host received is not what was sent")

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._session.call(method, *args, what=self._what)
        except (NotFoundError, ConflictError) as error:
            raise AgainError(f"the lease is over: {error}") from error


class _State:
    """What becomes of a lease that is being made; a Source for Updates."""

    def __init__(self, lease: vim.HttpNfcLease, what: str) -> None:
        self.ready: asyncio.Future[vim.HttpNfcLease.Info] = asyncio.get_running_loop().create_future()
        self._lease = lease
        self._what = what
        self._values: dict[str, Any] = {}

    async def begin(self, session: Session) -> Any:
        if self._lease not in await session.read([self._lease], ["state"]):
            self._fail(AgainError("the lease went with its session"))
            return None
        return _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=vim.HttpNfcLease, pathSet=_PATHS)],
            objectSet=[_Collector.ObjectSpec(obj=self._lease)],
        )

    def apply(self, update: Any) -> None:
        self._values |= {change.name: change.val for change in update.changeSet or ()}
        state, info = str(self._values.get("state")), self._values.get("info")
        if state == "ready" and info is not None:
            if not self.ready.done():
                self.ready.set_result(info)
        elif state in ("error", "done"):
            fault = self._values.get("error") or vmodl.MethodFault(msg=f"the lease is {state}")
            error: Exception = faults.translated(fault, self._what)
            if faults.is_retryable(fault):
                error = AgainError(faults.words(fault))
            error.__cause__ = fault
            self._fail(error)

    def complete(self) -> None:
        pass

    def _fail(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)


async def _pieces(
    image: Path, disk: StreamVmdk, digests: _Digests, on_progress: Progress
) -> AsyncGenerator[bytes, None]:
    with opened(image) as file:
        pieces, sent = disk.pieces(file), 0
        while piece := await asyncio.to_thread(_next, pieces, digests):
            on_progress(sent)
            sent += len(piece)
            yield piece
        on_progress(sent)


def _next(pieces: Iterator[bytes], digests: _Digests) -> bytes:
    piece = next(pieces, b"")
    for digest in digests.values():
        digest.update(piece)
    return piece
