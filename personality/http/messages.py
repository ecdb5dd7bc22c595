"""What endpoints get and what they give back: Request, and Reply, Stream or Hijack.

Nothing here does input or output; the server builds requests and carries the answers out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec

from personality.errors import DockerError

if TYPE_CHECKING:
    from personality.backend import Backend

T = TypeVar("T")

JSON = "application/json"
RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"

# JSON bodies only; archives are never held whole.
BODY_LIMIT = 4 << 20

_FALSE_WORDS = frozenset({"", "0", "no", "false", "none"})


class Query:
    """The parameters behind the question mark; a name may come several times."""

    def __init__(self, encoded: str = "") -> None:
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=1000)
        except ValueError as error:
            raise DockerError(400, f"the query cannot be read: {error}") from error
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: str = "") -> str:
        """The first value given for `name`."""
        values = self._values.get(name)
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        """Every value given for `name`, in order."""
        return list(self._values.get(name, ()))

    def flag(self, name: str, default: bool = False) -> bool:
        """Truth as Docker takes it: empty, 0, no, false and none are false, everything else is true."""
        if name not in self._values:
            return default
        return self.get(name).strip().lower() not in _FALSE_WORDS

    def integer(self, name: str, default: int = 0) -> int:
        """A whole number; `default` when absent or empty. Raises DockerError 400 for anything else."""
        text = self.get(name).strip()
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            value = 1 << 64
        # int() takes what no client means (1_000, other scripts' digits), and knows no upper end.
        if not text.isascii() or "_" in text or abs(value) >= 1 << 63:
            raise DockerError(400, f'invalid value "{text}" for parameter "{name}": not a whole number') from None
        return value

    def filters(self, accepted: frozenset[str] | None = None) -> dict[str, list[str]]:
        """`filters=` in both of its JSON forms, {"name": ["value"]} and {"name": {"value": true}}.

        Raises DockerError 400 when it is neither, or names a filter that is not in `accepted`.
        """
        text = self.get("filters")
        filters = _decode_filters(text) if text else {}
        for name in filters:
            if accepted is not None and name not in accepted:
                raise DockerError(400, f"invalid filter '{name}'")
        return filters


def _decode_filters(text: str) -> dict[str, list[str]]:
    try:
        decoded = msgspec.json.decode(text, type=dict[str, list[str] | dict[str, bool] | None])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise DockerError(400, f"invalid filter: {error}") from error
    filters: dict[str, list[str]] = {}
    for name, values in decoded.items():
        if isinstance(values, dict):
            filters[name] = [value for value, wanted in values.items() if wanted]
        else:
            filters[name] = values or []
    return filters


async def _no_body() -> AsyncIterator[bytes]:
    return
    yield b""


@dataclass
class Request:
    """One request, its body not read yet."""

    method: str
    # Decoded, without the version in front.
    path: str
    query: Query = field(default_factory=Query)
    # Names in lower case; of several with one name, the values joined by ", ".
    headers: Mapping[str, str] = field(default_factory=dict)
    # As the client asked for, or the newest when it named none.
    api_version: tuple[int, int] = (1, 50)
    # Says who asks: the name in the client's certificate, or the user at the other end of a Unix socket; "" if unknown.
    # To be called by those who want to know: it may have to look users up.
    caller: Callable[[], str] = str
    # What the route's pattern caught.
    params: dict[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] = field(default_factory=_no_body)

    @property
    def wants_upgrade(self) -> bool:
        """The client asked to leave HTTP for a raw stream (it then gets 101, otherwise 200)."""
        return "upgrade" in self.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Can be read once."""
        return self.body

    async def read(self, limit: int = BODY_LIMIT) -> bytes:
        """The whole body. Raises DockerError 413 when it is longer than `limit` bytes."""
        body = bytearray()
        async for chunk in self.body:
            body += chunk
            if len(body) > limit:
                raise DockerError(413, f"the request's body is too large: at most {limit} bytes are taken")
        return bytes(body)

    async def decode(self, type_: type[T]) -> T:
        """The body, JSON, as a `type_`; an absent body is an empty object.

        Fields that clients send as null must allow None in `type_`. Raises DockerError 400 for anything that is not
        JSON of that form, and for another content type.
        """
        body = await self.read()
        if body or "content-type" in self.headers:
            _require_json(self.headers.get("content-type", ""))
        try:
            return msgspec.json.decode(body or b"{}", type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DockerError(400, f"invalid JSON: {error}") from error


def _require_json(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if not media_type:
        raise DockerError(400, f"malformed Content-Type header ({content_type}): mime: no media type")
    if media_type != JSON:
        raise DockerError(400, f"unsupported Content-Type header ({content_type}): must be '{JSON}'")


@dataclass
class Reply:
    """A whole answer: `body` as JSON, or `raw` bytes as they are; with neither, an empty one."""

    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    content_type: str = JSON


@dataclass
class Stream:
    """An answer that comes piece by piece; each piece reaches the client at once.

    The headers go out with the first piece, which may be b"" to send them alone and early. An error raised before it
    becomes an ordinary error answer; one raised later cuts the connection, so that no client takes the answer for
    whole. When the client goes away, the iterator is cancelled and closed at once.
    """

    chunks: AsyncIterator[bytes]
    content_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Connection(Protocol):
    """The raw stream that a hijacked connection becomes."""

    async def read(self) -> bytes:
        """The next bytes from the client, those it sent right behind its request first; b"" once it half-closed."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when the client has taken enough. Raises ConnectionError when it has gone."""
        ...

    def write_eof(self) -> None:
        """Half-close: the client reads to the end, and may go on writing."""
        ...


@dataclass
class Hijack:
    """The connection leaves HTTP: `run` owns it until it returns, and is cancelled when the client goes away.

    A client's half-close is not going away. The connection is closed after `run`. Errors that `run` raises reach the
    log alone: what can be checked is checked before.
    """

    run: Callable[[Connection], Awaitable[None]]
    content_type: str = RAW_STREAM


Response: TypeAlias = Reply | Stream | Hijack
Handler: TypeAlias = "Callable[[Request, Backend], Awaitable[Response]]"
