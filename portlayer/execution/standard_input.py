"""A process's stdin, fed by clients one after the other."""

from __future__ import annotations

import asyncio

from portlayer.agent import AgentClient, AgentError, AgentRpcError
from portlayer.agent.errors import OUT_OF_RANGE
from tether.v1 import tether_pb2

_CHUNK_BYTES = 64 * 1024


class StandardInput:
    """Appends to the stdin of one process. Input that nobody reads any more is dropped, as a pipe would refuse it."""

    def __init__(self, client: AgentClient, process_id: str, *, offset: int | None = 0) -> None:
        self._client = client
        self._process_id = process_id
        self._offset = offset
        self._lock = asyncio.Lock()
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Returns when the guest has room for all of it, however long that takes."""
        async with self._lock:
            for start in range(0, len(data), _CHUNK_BYTES):
                await self._send(data[start : start + _CHUNK_BYTES])

    async def close(self) -> None:
        """The process reads end of file once it has read what was written."""
        async with self._lock:
            await self._send(b"", close=True)
            self._closed = True

    async def _send(self, data: bytes, *, close: bool = False) -> None:
        if self._closed:
            return
        try:
            if self._offset is None:
                self._offset = await self._request(0, b"")  # after a restart of this port layer the agent knows
            self._offset = await self._request(self._offset, data, close)
        except AgentRpcError as error:
            if error.rpc_code == OUT_OF_RANGE:
                raise
            self._closed = True
        except AgentError:
            self._closed = True  # the run is over

    async def _request(self, offset: int, data: bytes, close: bool = False) -> int:
        request = tether_pb2.WriteInputRequest(process_id=self._process_id, offset=offset, data=data, close=close)
        return await self._client.write_input(request)
