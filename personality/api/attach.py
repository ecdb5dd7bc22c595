"""Joining a container's streams, and reading its log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from personality.api.containers import get_container
from personality.api.streams import Pump, content_type, frame, open_call
from personality.backend import Backend
from personality.detach import DetachScanner, parse_keys
from personality.errors import DockerError
from personality.http.messages import Hijack, Request, Response, Stream
from personality.http.router import Route
from personality.times import parse_time
from personality.translate import describe
from personality.translate.log_options import Detailed, details
from portlayer.v1 import interaction_pb2 as pb
from portlayer.v1 import types_pb2

# More lines than any log has are all of them.
_LINES = re.compile(r"\d{1,18}", re.ASCII)


async def attach(request: Request, backend: Backend) -> Response:
    query = request.query
    keys = parse_keys(query.get("detachKeys"))
    container = (await get_container(backend, request.params["name"])).container
    terminal = container.spec.process.terminal
    # The client must not see the upgrade before the port layer has said that nothing is missed any more.
    call = await open_call(
        backend.interaction.Attach,
        pb.AttachRequest(
            open=pb.AttachOpen(
                container=container.id,
                stdin=query.flag("stdin"),
                stdout=query.flag("stdout"),
                stderr=query.flag("stderr"),
                logs=query.flag("logs"),
                stream=query.flag("stream"),
            )
        ),
    )
    detach = DetachScanner(keys) if terminal and query.flag("stdin") else None
    pump = Pump(call, pb.AttachRequest, terminal=terminal, detach=detach)
    return Hijack(pump.run, content_type(request, terminal=terminal))


async def logs(request: Request, backend: Backend) -> Response:
    query = request.query
    if not (query.flag("stdout") or query.flag("stderr")):
        raise DockerError(400, "Bad parameters: you must choose at least one stream")
    tail = _tail(query.get("tail", "all"))
    since_ns, until_ns = (_moment(query.get(name), name) for name in ("since", "until"))
    container = (await get_container(backend, request.params["name"])).container
    if container.spec.log.disabled:
        raise DockerError(501, "configured logging driver does not support reading")
    terminal = container.spec.process.terminal
    stamped = query.flag("timestamps")
    detailed = Detailed(_details(container), stamped=stamped) if query.flag("details") else None
    call = backend.interaction.ReadLogs(
        pb.ReadLogsRequest(
            container=container.id,
            follow=query.flag("follow"),
            stdout=query.flag("stdout"),
            stderr=query.flag("stderr"),
            since_unix_ns=since_ns,
            until_unix_ns=until_ns,
            tail=tail,
            timestamps=stamped,
        )
    )

    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b""
            async for piece in call:
                data = detailed.lines(piece.stream, piece.data) if detailed else piece.data
                yield data if terminal else frame(piece.stream, data)
        finally:
            call.cancel()

    return Stream(chunks(), content_type(request, terminal=terminal))


def _details(container: types_pb2.Container) -> bytes:
    host: dict[str, Any] = describe.given(container).get("HostConfig") or {}
    return details(container, (host.get("LogConfig") or {}).get("Config") or {})


def _tail(text: str) -> int | None:
    """Number of lines; None for all of them."""
    return int(text) if _LINES.fullmatch(text) else None


def _moment(text: str, name: str) -> int:
    return max(0, parse_time(text, name)) if text not in ("", "0") else 0


ROUTES = [
    Route("POST", "/containers/{name}/attach", attach),
    Route("GET", "/containers/{name}/logs", logs),
]
