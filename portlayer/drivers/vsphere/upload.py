"""Files of a datastore over HTTPS: vSphere's folder API, at the endpoint itself.

    https://VCENTER/folder/PATH?dcPath=DATACENTRE&dsName=DATASTORE      PUT, GET, HEAD

The session of the SOAP calls is good here as well, by its cookie. What breaks off is begun again, with growing delays;
an upload from its beginning, since vSphere takes no parts, a download where it stopped. A PUT that was cut off leaves a
short file: whoever uploads uses a name that nobody reads yet.

Facts: vSphere Web Services SDK Programming Guide, "HTTP Access to vSphere Server Files".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from urllib.parse import quote, urlencode

import httpx

from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, ExhaustedError, NotFoundError

Progress = Callable[[int], None]
_T = TypeVar("_T")

CHUNK_BYTES: Final = 1 << 20
# An upload that takes longer says in the log how far it is, as often; seconds.
_SAY_S = 10.0
# Transfers under way at once. They share the link, and the host's service for them is a small one.
_CONCURRENCY = 4
# Seconds without a byte. An answer to PUT comes when all is written.
TIMEOUT = httpx.Timeout(60.0, read=300.0, pool=None)
_MAX_WORDS = 500
_MAX_ANSWER_BYTES = 16 << 10
_PART, _MISSING, _BEYOND, _SPENT = 206, 404, 416, 507
_OK = (200, 201, 204, _PART)
_TRY_AGAIN = (401, 408, 429)
_FULL = ("no space", "insufficient disk space", "not enough space", "disk full", "out of space")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What is sent: `length` bytes from the beginning of a local file, then zeros where the file is shorter."""

    source: Path
    length: int


class AgainError(Exception):
    """The answer was no, but may be yes in a moment."""


class Folder:
    """Safe to use from many tasks. Paths are relative to the datastore and not quoted.

    Methods raise NotFoundError, ExhaustedError (the datastore is full) or DriverError.
    """

    def __init__(self, session: Session, datacenter_path: str, datastore: str) -> None:
        """`datacenter_path`: from the root folder, with slashes between names and none at its beginning."""
        self._session = session
        self._query = urlencode({"dcPath": datacenter_path, "dsName": datastore}, quote_via=quote, safe="/")
        self._slots = asyncio.Semaphore(_CONCURRENCY)
        # A proxy of the environment is for the outside world; SOAP does not go through it either.
        self._client = httpx.AsyncClient(verify=session.tls, timeout=TIMEOUT, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def put(
        self, path: str, content: Content, *, on_progress: Progress | None = None, verify: bool = False
    ) -> str:
        """Writes the file `path`, in the place of what is there; its directory exists. Returns the SHA-256 of it.

        The datastore must then say that it has as many bytes; with `verify` they are all read back and compared.
        `on_progress` hears how many bytes were sent, less than before when it has to begin again.
        """
        what = f"uploading {path}"
        progress = said(what, content.length, on_progress)

        async def attempt() -> str:
            digest = hashlib.sha256()
            sent = _pieces(content, digest, progress)
            headers = {"Content-Length": str(content.length), "Content-Type": "application/octet-stream"}
            async with contextlib.aclosing(sent), self._answer("PUT", path, what, headers, sent):
                pass
            if (there := await self._size(path, what)) != content.length:
                raise AgainError(f"{content.length} bytes were sent and {there} arrived")
            return digest.hexdigest()

        checksum = await self._attempts(what, attempt)
        _log.info("%s: %d bytes, SHA-256 %s", what, content.length, checksum)
        if verify and await self.sha256(path) != checksum:
            raise DriverError(f"{what}: what the datastore has is not what was sent")
        return checksum

    async def size(self, path: str) -> int | None:
        """In bytes; None when there is no such file."""
        what = f"looking for {path}"
        async with self._session.answering(what):
            return await self._attempts(what, lambda: self._size(path, what))

    async def read(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on: less, or none, where the file ends."""
        what = f"reading {path}"

        async def attempt() -> bytes:
            headers = {"Range": f"bytes={start}-{start + length - 1}"}
            async with self._answer("GET", path, what, headers, also=(_BEYOND,)) as answer:
                _check_part(answer, start, what)
                return b"" if answer.status_code == _BEYOND else await _bounded(answer, length)

        return await self._attempts(what, attempt)

    async def sha256(self, path: str) -> str:
        """Of the whole file, which is read for it."""
        digest, position = hashlib.sha256(), 0
        what = f"reading {path} back"

        async def attempt() -> None:
            nonlocal position
            headers = {"Range": f"bytes={position}-"} if position else {}
            also = (_BEYOND,) if position else ()
            async with self._answer("GET", path, what, headers, also=also) as answer:
                _check_part(answer, position, what)
                if answer.status_code == _BEYOND:  # all had come when it broke off
                    return
                # As they come: what waited in a buffer for more would be lost when it breaks off.
                async for piece in answer.aiter_raw():
                    digest.update(piece)
                    position += len(piece)

        await self._attempts(what, attempt)
        return digest.hexdigest()

    async def _size(self, path: str, what: str) -> int | None:
        async with self._answer("HEAD", path, what, {}, also=(_MISSING,)) as answer:
            if answer.status_code == _MISSING:
                return None
            told = answer.headers.get("Content-Length", "")
            if not told.isascii() or not told.isdigit():
                raise DriverError(f"{what}: the server does not say how large it is")
            return int(told)

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        what: str,
        headers: dict[str, str],
        content: AsyncIterator[bytes] | None = None,
        *,
        also: tuple[int, ...] = (),
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body not read, if it is a good one or one of `also`."""
        url = f"{self._session.endpoint.url}/folder/{quote(path)}?{self._query}"
        headers = {"Cookie": self._session.cookie, "Accept-Encoding": "identity", **headers}
        async with self._client.stream(method, url, headers=headers, content=content) as answer:
            if answer.status_code not in (*_OK, *also):
                raise await refusal(answer, what)
            yield answer

    async def _attempts(self, what: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for delay in (*self._session.delays_s, None):
            try:
                async with self._slots:
                    return await attempt()
            except (AgainError, httpx.TransportError) as error:
                reason = str(error) or type(error).__name__
                if delay is None or is_distrust(error):
                    raise DriverError(f"{what}: {reason[:_MAX_WORDS]}") from error
                _log.info("%s: %s; trying again in %g s", what, reason, delay)
            except OSError as error:
                raise DriverError(f"{what}: {error}") from error
            await self._session.pause(delay)
            # The session may be what is missing: any call logs in again.
            await self._session.read([self._session.content.rootFolder], ["name"])
        raise AssertionError("the last attempt raises")


def _check_part(answer: httpx.Response, start: int, what: str) -> None:
    if start and answer.status_code not in (_PART, _BEYOND):
        raise DriverError(f"{what}: the server does not give parts of files")


def said(what: str, total: int, on_progress: Progress | None) -> Progress:
    """Hears how many bytes were sent, tells `on_progress`, and now and then the log."""
    last = time.monotonic()

    def hear(sent: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _SAY_S:
            last = now
            _log.info("%s: %d of %d MiB", what, sent >> 20, total >> 20)
        if on_progress is not None:
            on_progress(sent)

    return hear


async def _pieces(content: Content, digest: hashlib._Hash, on_progress: Progress) -> AsyncGenerator[bytes, None]:
    with opened(content.source) as file:
        sent = 0
        while sent < content.length:
            on_progress(sent)
            piece = await asyncio.to_thread(_next_piece, file, min(CHUNK_BYTES, content.length - sent), digest)
            sent += len(piece)
            yield piece
        on_progress(sent)


def opened(path: Path) -> BinaryIO:
    """Not in a thread: a caller who is cancelled meanwhile would never get to close it."""
    return path.open("rb")


def _next_piece(file: BinaryIO, length: int, digest: hashlib._Hash) -> bytes:
    piece = file.read(length).ljust(length, b"\0")
    digest.update(piece)
    return piece


async def _bounded(answer: httpx.Response, length: int) -> bytes:
    """The first bytes of a body; what follows is not read."""
    taken = bytearray()
    async for piece in answer.aiter_raw():
        taken += piece
        if len(taken) >= length:
            break
    return bytes(taken[:length])


async def refusal(answer: httpx.Response, what: str) -> Exception:
    """What an answer other than a good one means."""
    status = answer.status_code
    text = (await _bounded(answer, _MAX_ANSWER_BYTES)).decode(errors="replace")
    said = " ".join(f"HTTP {status} {answer.reason_phrase} {_without_markup(text)}".split())[:_MAX_WORDS]
    if status == _SPENT or (status >= 500 and any(words in text.lower() for words in _FULL)):
        return ExhaustedError(f"{what}: the datastore is full ({said})")
    if status == _MISSING:
        return NotFoundError(f"{what}: there is no such file or datastore ({said})")
    if status == 403:
        return DriverError(f"{what}: the account may not; files need Datastore.FileManagement ({said})")
    if status >= 500 or status in _TRY_AGAIN:
        return AgainError(said)
    return DriverError(f"{what}: {said}")


def _without_markup(text: str) -> str:
    return re.sub(r"<[^<>]*>", " ", text)


def is_distrust(error: BaseException) -> bool:
    """Whether the certificate is not the right one: then it will not be in a moment either."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
