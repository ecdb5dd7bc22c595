"""Further processes in running containers."""

from __future__ import annotations

import json

import grpc.aio

from personality.api.containers import get_container, window
from personality.api.streams import STDERR, STDOUT, Pump, content_type, frame, open_call
from personality.backend import Backend
from personality.detach import DetachScanner, parse_keys
from personality.errors import DockerError
from personality.http.messages import Connection, Hijack, Reply, Request, Response
from personality.http.router import Route
from personality.translate.bodies import ExecBody, ExecStartBody
from personality.translate.create import FRONTEND
from portlayer.v1 import execution_pb2 as ex
from portlayer.v1 import interaction_pb2 as pb


async def create(request: Request, backend: Backend) -> Response:
    body = await request.decode(ExecBody)
    args = [body.cmd] if isinstance(body.cmd, str) else body.cmd or []
    if not args:
        raise DockerError(400, "No exec command specified")
    parse_keys(body.detach_keys or "")
    container = (await get_container(backend, request.params["name"])).container
    rows, columns = body.console_size if body.console_size and len(body.console_size) == 2 else (0, 0)
    said = {
        "AttachStdin": bool(body.attach_stdin),
        "AttachStdout": bool(body.attach_stdout),
        "AttachStderr": bool(body.attach_stderr),
        "DetachKeys": body.detach_keys or "",
    }
    spec = ex.ExecSpec(
        args=args,
        env=body.env or [],
        working_dir=body.working_dir or "",
        user=body.user or "",
        terminal=bool(body.tty),
        terminal_rows=rows,
        terminal_columns=columns,
        attach_stdin=bool(body.attach_stdin),
        privileged=bool(body.privileged),
        frontend_data={FRONTEND: json.dumps(said).encode()},
    )
    made = await backend.execution.CreateExec(ex.CreateExecRequest(container=container.id, spec=spec))
    return Reply(201, {"Id": made.exec_id})


async def start(request: Request, backend: Backend) -> Response:
    body = await request.decode(ExecStartBody)
    exec_id = request.params["id"]
    process = (await backend.execution.GetExec(ex.GetExecRequest(exec_id=exec_id))).exec
    if process.running or process.HasField("exit_code"):
        raise DockerError(409, f"exec {exec_id} {'is already running' if process.running else 'has already run'}")
    if body.detach:
        await backend.execution.StartExec(ex.StartExecRequest(exec_id=exec_id))
        return Reply()
    if body.console_size and len(body.console_size) == 2 and process.spec.terminal:
        rows, columns = body.console_size
        await backend.execution.ResizeExec(ex.ResizeExecRequest(exec_id=exec_id, rows=rows, columns=columns))
    terminal = process.spec.terminal
    keys = _said(process).get("DetachKeys", "")
    detach = DetachScanner(parse_keys(str(keys))) if terminal and process.spec.attach_stdin else None

    async def run(connection: Connection) -> None:
        """Starts the process only now that the client has its head: docker-py loses output that comes along with it."""
        first = pb.AttachExecRequest(open=pb.AttachExecOpen(exec_id=exec_id))
        try:
            call = await open_call(backend.interaction.AttachExec, first)
        except grpc.aio.AioRpcError as error:
            # As dockerd does it; the exit code of a program that cannot be launched stands in the exec's inspection.
            text = f"{error.details()}\r\n".encode()
            await connection.write(text if terminal else frame(STDOUT, text))
            connection.write_eof()
            return
        pump = Pump(call, pb.AttachExecRequest, terminal=terminal, detach=detach, streams=_attached(process))
        await pump.run(connection)

    return Hijack(run, content_type(request, terminal=terminal))


async def inspect(request: Request, backend: Backend) -> Response:
    process = (await backend.execution.GetExec(ex.GetExecRequest(exec_id=request.params["id"]))).exec
    said = _said(process)
    spec = process.spec
    return Reply(
        body={
            "ID": process.id,
            "Running": process.running,
            "ExitCode": process.exit_code if process.HasField("exit_code") else None,
            "ProcessConfig": {
                "tty": spec.terminal,
                "entrypoint": spec.args[0] if spec.args else "",
                "arguments": list(spec.args[1:]),
                "privileged": spec.privileged,
                "user": spec.user,
            },
            "OpenStdin": bool(said.get("AttachStdin")),
            "OpenStdout": bool(said.get("AttachStdout")),
            "OpenStderr": bool(said.get("AttachStderr")),
            "CanRemove": process.HasField("exit_code"),
            "ContainerID": process.container_id,
            "DetachKeys": str(said.get("DetachKeys", "")),
            "Pid": process.pid,
        }
    )


def _said(process: ex.Exec) -> dict[str, object]:
    """What the client said that made it; empty for execs of other front-ends."""
    try:
        decoded = json.loads(process.spec.frontend_data.get(FRONTEND, b"{}"))
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _attached(process: ex.Exec) -> frozenset[int]:
    """The streams that its maker wants; both, when that was another front-end."""
    said = _said(process)
    wanted = ((STDOUT, said.get("AttachStdout", True)), (STDERR, said.get("AttachStderr", True)))
    return frozenset(stream for stream, attached in wanted if attached)


async def resize(request: Request, backend: Backend) -> Response:
    rows, columns = window(request)
    await backend.execution.ResizeExec(ex.ResizeExecRequest(exec_id=request.params["id"], rows=rows, columns=columns))
    return Reply()


ROUTES = [
    Route("POST", "/containers/{name}/exec", create),
    Route("POST", "/exec/{id}/start", start),
    Route("POST", "/exec/{id}/resize", resize),
    Route("GET", "/exec/{id}/json", inspect),
]
