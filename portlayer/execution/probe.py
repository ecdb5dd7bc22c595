"""One run of a health check's program in a container."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from portlayer.agent import AgentError
from portlayer.errors import PortLayerError
from portlayer.execution import health, states
from portlayer.v1 import execution_pb2, types_pb2

if TYPE_CHECKING:
    from portlayer.execution.container import Container
    from portlayer.execution.exec_process import ExecProcess
    from portlayer.execution.streams import Subscription

FAILED = -1


async def probe(container: Container, arguments: list[str], timeout_s: float) -> types_pb2.HealthProbe | None:
    """What came of it; None when the container cannot be asked now: it is frozen, or about to end."""
    if container.state.status != states.RUNNING:
        return None
    found = types_pb2.HealthProbe(began_unix_ns=time.time_ns(), exit_code=FAILED)
    process: ExecProcess | None = None
    output = bytearray()
    try:
        process = container.execs.create(execution_pb2.ExecSpec(args=arguments))
        subscription = process.hub.subscribe()
        with contextlib.closing(subscription):
            await container.execs.start(process)
            async with asyncio.timeout(timeout_s):
                await _collect(subscription, output)
                await process.ended.wait()
        found.exit_code = process.exit_code if process.exit_code is not None else FAILED
    except TimeoutError:
        output[:0] = f"Health check exceeded timeout ({timeout_s:g}s){': ' if output else ''}".encode()
        if process is not None:
            await process.kill()
    except (AgentError, PortLayerError) as error:
        output[:] = str(error).encode()
    finally:
        if process is not None:
            container.execs.forget(process)
    if container.state.status != states.RUNNING:
        return None  # its end is not the check's finding
    found.ended_unix_ns = time.time_ns()
    found.output = health.output_of(bytes(output))
    return found


async def _collect(subscription: Subscription, output: bytearray) -> None:
    """Reads everything, so that the program never waits, and keeps the beginning."""
    async for chunk in subscription:
        if len(output) <= health.MAX_OUTPUT:
            output += chunk.data[: health.MAX_OUTPUT + 1]
