"""The size of a process's terminal."""

from __future__ import annotations

from portlayer.agent import AgentClient, AgentRpcError
from portlayer.errors import ConflictError
from tether.v1 import tether_pb2


async def resize_terminal(client: AgentClient, process_id: str, rows: int, columns: int) -> None:
    """Raises ConflictError when the process has ended or has no terminal."""
    size = tether_pb2.WindowSize(rows=rows, columns=columns)
    try:
        await client.resize(tether_pb2.ResizeRequest(process_id=process_id, window_size=size))
    except AgentRpcError as error:
        raise ConflictError(f"cannot resize: {error.message}") from error
