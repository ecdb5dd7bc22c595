"""The run of a container that is under way, if there is one, and all who wait for its beginning or its end."""

from __future__ import annotations

import asyncio

from portlayer.errors import ConflictError, UnavailableError
from portlayer.execution.life import Life
from portlayer.execution.run import Ended, Run
from portlayer.execution.streams import OutputHub
from portlayer.logs import Log


class CurrentRun:
    """Runs of one container follow one another; log and output hub are the same for all."""

    def __init__(self, life: Life, log: Log, output: OutputHub) -> None:
        self._life = life
        self.log = log
        self.output = output
        self.run: Run | None = None
        # How the run before ended.
        self.last = Ended(life.state.exit_code)
        # Not set from a run's beginning until all that follows from its end is done: it is recorded, its VM is off.
        self.settled = asyncio.Event()
        self.settled.set()
        self._started = asyncio.Event()
        self._next_exit: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def new(self) -> Run:
        """One that is not under way yet: who asks for it closes it if it comes to nothing."""
        return Run(self._life.machine, self.log, self.output, self._life.record.run)

    def require(self) -> Run:
        """Raises ConflictError."""
        if self.run is None:
            raise ConflictError(f"container {self._life.id} is not running")
        return self.run

    async def require_settled(self) -> None:
        """Returns when nothing of the run before is left to do.

        Raises UnavailableError when its end cannot be recorded: a hypervisor may be away for long.
        """
        unrecorded = self._life.unrecorded
        waiting = [asyncio.create_task(event.wait()) for event in (self.settled, unrecorded)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if not self.settled.is_set():
            raise UnavailableError(f"how it ended last cannot be recorded yet: {self._life.unrecorded_because}")

    def begin(self, run: Run) -> None:
        """Init runs in it."""
        self.run = run
        self.settled.clear()
        self._started.set()

    def end(self, ended: Ended) -> None:
        """It has ended, or could not begin. Clients hear no more of it; those who wait are told by `announce`."""
        self.run = None
        self._started.clear()
        self.last = ended
        self.output.end_run()
        self.log.notify()

    def announce(self) -> None:
        """Tells those who wait how the last run ended."""
        waiting, self._next_exit = self._next_exit, asyncio.get_running_loop().create_future()
        waiting.set_result(self.last)

    def next_exit(self) -> asyncio.Future[Ended]:
        """Done when the run under way, or the next one, ends. Shield it."""
        return self._next_exit

    async def stdin_write(self, data: bytes) -> None:
        """Appends to init's stdin; waits for the container to start."""
        await self._started.wait()
        if self.run is not None and self.run.stdin is not None:
            await self.run.stdin.write(data)

    async def stdin_close(self) -> None:
        """Ends init's stdin."""
        await self._started.wait()
        if self.run is not None and self.run.stdin is not None:
            await self.run.stdin.close()
