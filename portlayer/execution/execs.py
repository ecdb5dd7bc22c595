"""The processes that run beside one container's init: prepared, started, watched, and forgotten after a while."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from portlayer.execution import process_spec
from portlayer.execution.exec_process import ExecProcess
from portlayer.execution.run import Run
from portlayer.execution.tasks import Tasks
from portlayer.v1 import execution_pb2, types_pb2

_MAX_ENDED = 64


class Execs:
    """The execs of one container, which says by `ready` whether one may begin (ConflictError), and in which run."""

    def __init__(
        self,
        container_id: str,
        spec: types_pb2.ContainerSpec,
        tasks: Tasks,
        *,
        ready: Callable[[], Run],
        emit: Callable[[str, Mapping[str, str]], None],
    ) -> None:
        self._container_id = container_id
        self._spec = spec
        self._tasks = tasks
        self._ready = ready
        self._emit = emit
        self._processes: dict[str, ExecProcess] = {}

    def __len__(self) -> int:
        return len(self._processes)

    def get(self, exec_id: str) -> ExecProcess | None:
        return self._processes.get(exec_id)

    def pending_ids(self) -> list[str]:
        """Ids of those that have not ended."""
        return [one.id for one in self._processes.values() if not one.ended.is_set()]

    def create(self, spec: execution_pb2.ExecSpec) -> ExecProcess:
        """Prepares a process. Raises ConflictError when the container does not run."""
        self._ready()
        process = ExecProcess(secrets.token_hex(32), self._container_id, spec)
        ended = [one for one in self._processes.values() if one.ended.is_set()]
        for old in ended[: max(0, len(ended) - _MAX_ENDED + 1)]:
            self.forget(old)
        self._processes[process.id] = process
        self._emit(f"exec_create: {_words(spec)}", {"execID": process.id})
        return process

    async def start(self, process: ExecProcess) -> None:
        """Launches a prepared process and has it watched. Raises LaunchError, ConflictError."""
        run = self._ready()
        process.claim()
        await self._tasks.finish(self._start(process, run), f"exec {process.id[:12]}")

    def forget(self, process: ExecProcess) -> None:
        """Nobody will ask for it any more."""
        self._processes.pop(process.id, None)

    async def _start(self, process: ExecProcess, run: Run) -> None:
        self._emit(f"exec_start: {_words(process.spec)}", {"execID": process.id})
        await process.start(run.client, process_spec.exec_request(process.id, process.spec, self._spec))
        self._tasks.spawn(self._watch(process, run), f"watch exec {process.id[:12]}")

    async def _watch(self, process: ExecProcess, run: Run) -> None:
        exit_code = await process.watch(run.client)
        self._emit("exec_die", {"execID": process.id, "exitCode": str(exit_code)})


def _words(spec: execution_pb2.ExecSpec) -> str:
    """As dockerd writes a command into events."""
    return f"{spec.args[0]} {' '.join(spec.args[1:])}"
