"""What clients ask of a container while it runs: its terminal's size, its processes, what it uses."""

from __future__ import annotations

from portlayer.agent import AgentError, AgentRpcError
from portlayer.errors import ConflictError
from portlayer.execution import states, usage
from portlayer.execution.current_run import CurrentRun
from portlayer.execution.life import Life
from portlayer.execution.run import INIT
from portlayer.execution.terminal import resize_terminal
from portlayer.execution.usage import Usage
from tether.v1 import tether_pb2


async def resize(life: Life, current: CurrentRun, rows: int, columns: int) -> None:
    """Sets the size of init's terminal. Before the start it becomes the first size."""
    if life.state.status in (states.CREATED, states.STARTING):
        life.spec.process.terminal_rows, life.spec.process.terminal_columns = rows, columns
        return
    life.require_live()
    await resize_terminal(current.require().client, INIT, rows, columns)
    life.emit("resize", {"height": str(rows), "width": str(columns)})


async def processes(life: Life, current: CurrentRun) -> tether_pb2.ProcessesResponse:
    """The container's processes. Raises ConflictError when it does not run."""
    life.require_live()
    if life.paused:
        raise ConflictError(f"Container {life.name} is paused, and its processes with its VM: unpause it first")
    try:
        found = await current.require().client.processes()
    except AgentRpcError as error:
        raise ConflictError(f"container {life.id} is not running") from error
    life.emit("top")
    return found


async def stats(life: Life, current: CurrentRun) -> Usage:
    """Resource usage; nothing is known of it when it does not run."""
    run = current.run
    if run is None or not life.live:
        return Usage(life.machine.spec)
    try:
        return await usage.ask(life.machine, None if life.paused else run.client.stats)
    except AgentError:
        if current.run is not run:
            return Usage(life.machine.spec)  # it ended meanwhile
        raise
