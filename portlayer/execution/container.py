"""One container: its runs on its machine, one after another.

What it is and the state that it is in is its `Life`; how it is started, ended and removed is said in the modules of
those names. Here is what holds them together: what follows from a start, from the end of a run, and from a former port
layer's end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from portlayer.drivers.base import Machine, PowerState
from portlayer.errors import ConflictError, DriverError, PortLayerError, UnavailableError
from portlayer.execution import health, inside, pausing, restarts, states
from portlayer.execution.current_run import CurrentRun
from portlayer.execution.ending import SIGKILL, Ending
from portlayer.execution.execs import Execs
from portlayer.execution.host import Host
from portlayer.execution.life import Life
from portlayer.execution.power import Power
from portlayer.execution.probe import probe
from portlayer.execution.removal import Removal
from portlayer.execution.restarts import Restarts
from portlayer.execution.run import Ended, Run
from portlayer.execution.sizes import Size
from portlayer.execution.starting import Starting
from portlayer.execution.states import Action
from portlayer.execution.streams import OutputHub
from portlayer.execution.usage import Usage
from portlayer.logs import Log
from portlayer.v1 import record_pb2, types_pb2
from tether.v1 import tether_pb2

KILLED_EXIT_CODE = 128 + SIGKILL
RECORD_VERSION = 1
# After a restart, a hypervisor that does not say so soon whether a machine runs is not waited for.
_RECOVER_S = 10.0
_log = logging.getLogger(__name__)


class Container:
    """See the module's docstring."""

    def __init__(self, host: Host, machine: Machine, record: record_pb2.ContainerRecord, size: Size) -> None:
        self.machine = machine
        self.record = record
        self.life = life = Life(machine, record, host.events)
        limits = life.spec.log
        self.log = Log(
            machine.directory / "log",
            max_file_bytes=limits.max_file_bytes,
            max_files=limits.max_files,
            keep=not limits.disabled,
        )
        self.output = OutputHub()
        self.execs = Execs(life.id, life.spec, host.tasks, ready=self._ready_run, emit=life.emit)
        self._tasks = host.tasks
        self._power = power = Power(machine)
        self._current = current = CurrentRun(life, self.log, self.output)
        self._restarts = Restarts(life, current)
        self._starting = Starting(host, life, size, current=current, power=power, restarts=self._restarts)
        self._ending = Ending(life, host.tasks, current=current, power=power, restarts=self._restarts)
        self._removal = Removal(host, life, current=current, power=power, ending=self._ending)
        self._checking: asyncio.Task[None] | None = None

    # --- what it is

    @property
    def id(self) -> str:
        return self.life.id

    @property
    def name(self) -> str:
        return self.life.name

    @property
    def spec(self) -> types_pb2.ContainerSpec:
        return self.life.spec

    @property
    def state(self) -> types_pb2.ContainerState:
        return self.life.state

    @property
    def live(self) -> bool:
        """Whether a process of it exists."""
        return self.life.live

    @property
    def removed(self) -> asyncio.Future[Ended]:
        """Done when nothing is left of it; with the end of its last run."""
        return self.life.removed

    @property
    def settled(self) -> asyncio.Event:
        """Not set from a run's beginning until all that follows from its end is done."""
        return self._current.settled

    def to_proto(self) -> types_pb2.Container:
        """A copy for clients."""
        container = types_pb2.Container()
        container.CopyFrom(self.record.container)
        container.exec_ids.extend(self.execs.pending_ids())
        return container

    def emit(self, action: str, attributes: Mapping[str, str] | None = None) -> None:
        """Records an event of this container."""
        self.life.emit(action, attributes)

    # --- what clients order

    async def start(self) -> bool:
        """Boots the VM and launches init; False when it runs already. Raises LaunchError, ConflictError."""
        return await self._tasks.finish(self._start(), f"start {self.life.short_id}")

    async def stop(self, timeout_s: int | None, signal: int) -> bool:
        """Asks init to end, kills it after the time (None: its own, negative: never). False when it did not run."""
        return await self._ending.stop(timeout_s, signal)

    async def kill(self, signal: int) -> None:
        """Sends a signal to init; with SIGKILL returns when the run has ended. Raises ConflictError."""
        await self._ending.kill(signal)

    async def halt(self) -> None:
        """No policy starts it again."""
        await self._ending.halt()

    async def restart(self, timeout_s: int | None, signal: int) -> None:
        """Stops it if need be, and starts it."""
        await self.stop(timeout_s, signal)
        await self.start()
        self.emit("restart")

    async def pause(self) -> None:
        """Freezes the VM. Raises ConflictError."""
        await pausing.pause(self.life)

    async def resume(self) -> None:
        """Lets a frozen VM go on. Raises ConflictError."""
        await pausing.resume(self.life)

    async def remove(self, *, force: bool) -> None:
        """Destroys machine, disks and log. Raises ConflictError when it runs and `force` is not set."""
        await self._removal.remove(force=force)

    def begin_removal(self, *, force: bool) -> None:
        """As `remove`, in the background and until it is gone: nobody waits for that."""
        self._removal.begin(force=force)

    async def rename(self, name: str) -> None:
        """Gives it another name; the caller has made sure that it is free."""
        async with self.life.lock:
            old, self.record.container.name = self.name, name
            try:
                await self.life.save()
            except PortLayerError:
                self.record.container.name = old
                raise
            self.emit("rename", {"oldName": f"/{old}"})

    async def update(self, policy: types_pb2.RestartPolicy) -> None:
        """Gives it another restart policy. Raises InvalidArgumentError, ConflictError."""
        restarts.check(policy)
        if self.spec.auto_remove and policy.kind != restarts.NEVER:
            raise ConflictError("Restart policy cannot be updated because AutoRemove is enabled for the container")
        async with self.life.lock:
            self.life.require_usable()
            before = types_pb2.RestartPolicy()
            before.CopyFrom(self.spec.restart)
            self.spec.restart.CopyFrom(policy)
            try:
                await self.life.save()
            except PortLayerError:
                self.spec.restart.CopyFrom(before)
                raise
            self.emit("update")

    # --- what clients ask and wait for

    def next_exit(self) -> asyncio.Future[Ended]:
        """Done when the run under way, or the next one, ends. Shield it."""
        return self._current.next_exit()

    async def stdin_write(self, data: bytes) -> None:
        """Appends to init's stdin; waits for the container to start."""
        await self._current.stdin_write(data)

    async def stdin_close(self) -> None:
        """Ends init's stdin."""
        await self._current.stdin_close()

    async def resize(self, rows: int, columns: int) -> None:
        """Sets the size of init's terminal. Before the start it becomes the first size."""
        await inside.resize(self.life, self._current, rows, columns)

    async def processes(self) -> tether_pb2.ProcessesResponse:
        """The container's processes. Raises ConflictError when it does not run."""
        return await inside.processes(self.life, self._current)

    async def stats(self) -> Usage:
        """Resource usage; nothing is known of it when it does not run."""
        return await inside.stats(self.life, self._current)

    def _ready_run(self) -> Run:
        """The run that a further process may begin in."""
        self.life.require_live()
        if self.life.paused:
            raise ConflictError(f"Container {self.name} is paused, unpause the container before exec")
        return self._current.require()

    # --- from a start to the end of the run, and on

    async def _start(self) -> bool:
        async with self.life.lock:
            if self.life.paused:
                raise ConflictError("cannot start a paused container, try unpause instead")
            if self.life.active:
                return False
            self.life.require_usable()
            await self._current.require_settled()
            self._restarts.begin_anew()
            try:
                self._begin(await self._starting.launch())
            except PortLayerError as error:
                await self._start_failed(error)
                raise
            return True

    async def _start_again(self) -> None:
        """While a restart is due: waits for the pause to pass or to be ended, and starts it."""
        while self._restarts.due:
            await self._restarts.pause()
            async with self.life.lock:
                if not self._restarts.due:
                    return
                await self.settled.wait()
                try:
                    self._begin(await self._starting.launch())
                except PortLayerError as error:
                    _log.warning("container %s cannot be started again: %s", self.life.short_id, error)
                    await self._start_failed(error)

    async def _start_failed(self, error: PortLayerError) -> None:
        await self._starting.failed(error)
        if self.spec.auto_remove:
            self._removal.begin()

    def _begin(self, run: Run) -> None:
        """A run is under way: watch it."""
        self._current.begin(run)
        self._tasks.spawn(self._supervise(run), f"supervise {self.life.short_id}")
        self._check_health()

    def _check_health(self) -> None:
        if not health.command(self.spec.health_check):
            return
        monitor = health.Monitor(
            self.spec.health_check,
            self.state.health,
            probe=lambda arguments, timeout_s: probe(self, arguments, timeout_s),
            changed=lambda word: self.emit(f"health_status: {word}"),
        )
        self._checking = self._tasks.spawn(monitor.run(), f"health of {self.life.short_id}")

    async def _supervise(self, run: Run) -> None:
        try:
            ended = await run.watch()
            if ended.error and self._power.cut_by_order:
                ended = Ended(KILLED_EXIT_CODE)
            async with self.life.lock:
                self._record_exit(ended)
            # One that is removed now needs neither: its agent knows how it ended until there is nothing left to know.
            if not self.spec.auto_remove:
                await self.life.save_surely()
                if not ended.vm_restarted:
                    await run.settle()
        finally:
            await run.close()
            self.settled.set()
        if self.spec.auto_remove:
            self._removal.begin()
        elif ended.vm_restarted and not self.record.halted and self.state.status == states.EXITED:
            await self.start()  # whoever restarted the VM wants it to do what it did
        await self._start_again()

    def _record_exit(self, ended: Ended) -> None:
        state = self.state
        self.life.move(Action.EXIT)
        if self._checking is not None:
            self._checking.cancel()
        state.pid = 0
        state.exit_code = ended.exit_code
        state.oom_killed = ended.oom_killed
        state.error = ended.error
        state.finished_unix_ns = time.time_ns()
        ran_s = max(0, state.finished_unix_ns - state.started_unix_ns) / 1e9
        if ended.oom_killed:
            self.emit("oom")
        self.emit("die", {"exitCode": str(ended.exit_code), "execDuration": str(int(ran_s))})
        self._restarts.consider(ran_s)
        self._current.end(ended)
        self._current.announce()

    # --- from one port layer to the next

    def detach(self) -> None:
        """The port layer ends; the VM goes on."""
        self.log.close()

    async def recover(self) -> None:
        """Takes up what a former port layer left; what needs time goes on in the background."""
        await asyncio.to_thread(self.log.open)
        power = await self._power_found()
        status = self.state.status
        if status == states.REMOVING:
            self._removal.begin()
        elif status == states.STARTING:
            await self._start_failed(UnavailableError("the port layer ended while the container started"))
        elif status in states.LIVE:
            self._adopt(power)
        else:
            if power is not PowerState.OFF:
                self.settled.clear()
                self._tasks.spawn(self._power_off_leftover(), f"power off {self.life.short_id}")
            elif self.spec.auto_remove and self.record.run:
                self._removal.begin()  # which it should have been; one that was never started stays
            if status == states.EXITED:
                self._restarts.consider_at_open()
        if self._restarts.due:
            self._tasks.spawn(self._start_again(), f"start {self.life.short_id} again")

    async def _power_found(self) -> PowerState:
        """A machine that does not answer is taken for running: whoever takes it up finds out, and cuts its power."""
        try:
            async with asyncio.timeout(_RECOVER_S):
                return await self.machine.power_state()
        except (TimeoutError, DriverError) as error:
            _log.warning("container %s: its machine does not answer: %s", self.life.short_id, error)
            return PowerState.RUNNING

    def _adopt(self, power: PowerState) -> None:
        if power is PowerState.PAUSED:
            self.state.status = states.PAUSED
        elif self.life.paused:
            self.state.status = states.RUNNING
        run = self._current.new()
        run.adopt(self.record.start_request_id, stdin=self.spec.process.open_stdin)
        self._current.begin(run)
        self._tasks.spawn(self._join(run, power), f"adopt {self.life.short_id}")
        self._check_health()

    async def _join(self, run: Run, power: PowerState) -> None:
        """Makes sure that the VM still runs what was started, then watches it. A frozen one is not asked."""
        try:
            if power is PowerState.RUNNING:
                await run.check_adopted()
        except BaseException:
            await run.close()
            raise
        await self._supervise(run)

    async def _power_off_leftover(self) -> None:
        """The exit is recorded, but the VM was not told: let it go in order."""
        run = self._current.new()
        try:
            run.adopt(self.record.start_request_id, stdin=False)
            await run.power_off()
        finally:
            await run.close()
            self.settled.set()
        if self.spec.auto_remove:
            self._removal.begin()
