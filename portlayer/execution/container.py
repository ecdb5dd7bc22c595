"""One container: its state machine on its machine.

Operations are serialised by a lock, held only while something is changed, never while something is awaited that another
operation may have to bring about (the end of a run). What must survive is in the record, stored with the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portlayer.agent import AgentError, AgentRpcError
from portlayer.agent.errors import NOT_FOUND
from portlayer.drivers.base import Machine, MachineDriver, PowerState
from portlayer.errors import (
    ConflictError,
    DriverError,
    ExhaustedError,
    LaunchError,
    NotFoundError,
    PortLayerError,
    UnavailableError,
)
from portlayer.events import EventHub
from portlayer.execution import health, process_spec, restarts, states, usage
from portlayer.execution.execs import Execs
from portlayer.execution.probe import probe
from portlayer.execution.run import INIT, Ended, Run
from portlayer.execution.sizes import Size
from portlayer.execution.states import Action
from portlayer.execution.streams import OutputHub
from portlayer.execution.tasks import Tasks
from portlayer.execution.terminal import resize_terminal
from portlayer.execution.usage import Usage
from portlayer.logs import Log
from portlayer.metrics import Metrics
from portlayer.v1 import record_pb2, types_pb2
from tether.v1 import tether_pb2

if TYPE_CHECKING:  # which needs this package
    from portlayer.instantclone import InstantClones

SIGKILL = 9
# Whoever sends one of these (or the stop signal) wants the container to end: it is not restarted.
_ENDING_SIGNALS = frozenset((2, 3, 15, SIGKILL))
KILLED_EXIT_CODE = 128 + SIGKILL
DEFAULT_STOP_TIMEOUT_S = 10
RECORD_VERSION = 1
# After SIGKILL a guest has this long to report the end before its power is cut.
_KILL_S = 10.0
_STOP_CALL_S = 10.0
_SIGNAL_S = 30.0
_HALT_S = 5.0
# After a restart, a hypervisor that does not say so soon whether a machine runs is not waited for.
_RECOVER_S = 10.0
_SAVE_RETRY_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Host:
    """What every container of a VCH shares."""

    driver: MachineDriver
    events: EventHub
    tasks: Tasks
    clones: InstantClones
    metrics: Metrics


class Container:
    """See the module's docstring."""

    def __init__(self, host: Host, machine: Machine, record: record_pb2.ContainerRecord, size: Size) -> None:
        self._host = host
        self._size = size
        self.machine = machine
        self.record = record
        limits = record.container.spec.log
        self.log = Log(
            machine.directory / "log",
            max_file_bytes=limits.max_file_bytes,
            max_files=limits.max_files,
            keep=not limits.disabled,
        )
        self.output = OutputHub()
        self.execs = Execs(self.id, self.spec, host.tasks, ready=self._ready_run, emit=self.emit)
        self._lock = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._run: Run | None = None
        self._kill_ordered = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._next_exit: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._started = asyncio.Event()
        self.removed: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._last = Ended(self.state.exit_code)
        self._pauses = restarts.Pauses()
        self._pause_s = 0.0
        # Set when no restart is to be waited for any more.
        self._recalled = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None

    # --- what it is

    @property
    def id(self) -> str:
        return self.record.container.id

    @property
    def name(self) -> str:
        return self.record.container.name

    @property
    def spec(self) -> types_pb2.ContainerSpec:
        return self.record.container.spec

    @property
    def state(self) -> types_pb2.ContainerState:
        return self.record.container.state

    @property
    def live(self) -> bool:
        """Whether a process of it exists."""
        return self.state.status in states.LIVE

    def to_proto(self) -> types_pb2.Container:
        """A copy for clients."""
        container = types_pb2.Container()
        container.CopyFrom(self.record.container)
        container.exec_ids.extend(self.execs.pending_ids())
        return container

    def emit(self, action: str, attributes: Mapping[str, str] | None = None) -> None:
        """Records an event of this container."""
        own = {**self.spec.labels, "image": self.spec.image, "name": self.name}
        self._host.events.emit("container", action, self.id, {**own, **(attributes or {})})

    # --- starting

    async def start(self) -> bool:
        """Boots the VM and launches init; False when it runs already. Raises LaunchError, ConflictError."""
        return await self._host.tasks.finish(self._start(), f"start {self.id[:12]}")

    async def _start(self) -> bool:
        async with self._lock:
            if self.state.status == states.PAUSED:
                raise ConflictError("cannot start a paused container, try unpause instead")
            if self.state.status in states.ACTIVE:
                return False
            self._require_usable()
            await self._settled.wait()
            self.record.halted = False
            self.state.restart_count = 0
            self._pauses = restarts.Pauses()
            try:
                await self._launch()
            except PortLayerError as error:
                await self._launch_failed(error)
                if self.spec.auto_remove:
                    self._host.tasks.spawn(self.remove(force=False), f"remove {self.id[:12]}")
                raise
            return True

    async def _launch(self) -> None:
        try:
            await self._boot_and_launch()
        except asyncio.CancelledError:
            await self._let_go()  # the port layer ends; the next one finds the container STARTING
            raise

    async def _boot_and_launch(self) -> None:
        self._move(Action.START)
        self._kill_ordered = False
        self.record.run += 1
        self.record.start_request_id = secrets.token_hex(16)
        self.state.error = ""
        await self._save()
        with self._host.clones.starting():
            await self._start_machine_and_init()

    async def _start_machine_and_init(self) -> None:
        run = await self._powered_on()
        self._require_power()
        request = process_spec.init_request(
            self.spec,
            self.record.start_request_id,
            memory_limit_bytes=self._size.memory_limit_bytes,
            cpu_limit_ns_per_s=self._size.cpu_limit_ns_per_s,
            machine_id=self.id[:32],
            disks=self._host.driver.disk_names,
        )
        response = await run.launch(request)
        self._move(Action.LAUNCHED)
        self.state.pid = response.pid
        self.state.exit_code = 0
        self.state.oom_killed = False
        self.state.started_unix_ns = time.time_ns()
        self._note_how_it_started(run)
        await self._save()
        self._begin(run)
        self._host.metrics.started(_method(run), run.phases_ns)
        self.emit("start", _words(run))
        _log.info("container %s started: %s, in ms: %s", self.id[:12], _method(run), _phases(run))

    async def _powered_on(self) -> Run:
        """The machine in a clone, where there is one for it and nothing goes wrong with it; else booted."""
        run = self._run = Run(self.machine, self.log, self.output, self.record.run)
        taken = None
        if not self.spec.cold_boot and await self.machine.power_state() is not PowerState.RUNNING:
            taken = await self._host.clones.take(self.machine.spec)
        if taken is not None:
            try:
                await run.move_in(taken)
                return run
            except PortLayerError as error:
                if self._kill_ordered:
                    raise  # it is removed while it starts
                _log.warning("container %s boots, as its clone was of no use: %s", self.id[:12], error)
            await self._let_go()
            await self.machine.power_off()
            run = self._run = Run(self.machine, self.log, self.output, self.record.run)
        self._require_power()
        await run.boot()
        return run

    def _require_power(self) -> None:
        """Whoever removes it while it starts has cut the power before there was any, or that of a clone: that is no
        reason to boot."""
        if self._kill_ordered:
            raise UnavailableError("the VM was switched off while it started")

    def _note_how_it_started(self, run: Run) -> None:
        container = self.record.container
        container.start_method, container.template_id = run.method, run.template_id
        container.start_phases_ns.clear()
        container.start_phases_ns.update(run.phases_ns)

    async def _launch_failed(self, error: PortLayerError) -> None:
        self._host.metrics.start_failed()
        await self._let_go()
        with contextlib.suppress(PortLayerError):
            await self.machine.power_off()
        if self.state.status == states.STARTING:
            self._move(Action.LAUNCH_FAILED if self.state.started_unix_ns else Action.FIRST_LAUNCH_FAILED)
        elif self.live:
            self._move(Action.EXIT)
        self.state.exit_code = error.exit_code if isinstance(error, LaunchError) else 128
        self.state.error = str(error)
        self.state.finished_unix_ns = time.time_ns() if self.state.started_unix_ns else 0
        # The caller of a start is told why; those who wait are not told again.
        self._last = Ended(self.state.exit_code)
        if self.state.restart_count:
            # Nobody called: what may pass is tried again, what cannot be launched is not.
            if not isinstance(error, LaunchError):
                self._consider_restart(ran_s=0)
            self._announce(self._last)
        with contextlib.suppress(PortLayerError):
            await self._save()
        self.output.end_run()

    async def _let_go(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await run.close()

    def _begin(self, run: Run) -> None:
        """A run is under way: watch it."""
        self._kill_ordered = False
        self._settled.clear()
        self._started.set()
        self._host.tasks.spawn(self._supervise(run), f"supervise {self.id[:12]}")
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
        self._checking = self._host.tasks.spawn(monitor.run(), f"health of {self.id[:12]}")

    async def _supervise(self, run: Run) -> None:
        try:
            ended = await run.watch()
            if ended.error and self._kill_ordered:
                ended = Ended(KILLED_EXIT_CODE)
            async with self._lock:
                self._record_exit(ended)
            # One that is removed now needs neither: its agent knows how it ended until there is nothing left to know.
            if not self.spec.auto_remove:
                await self._save_surely()
                if not ended.vm_restarted:
                    await self._let_end(run)
        finally:
            await run.close()
            self._settled.set()
        if self.spec.auto_remove:
            await self.remove(force=False)
        elif ended.vm_restarted and not self.record.halted and self.state.status == states.EXITED:
            await self.start()  # whoever restarted the VM wants it to do what it did
        await self._start_again()

    async def _let_end(self, run: Run) -> None:
        """A hypervisor that is away must not keep the container from what comes after its end."""
        try:
            await run.settle()
        except PortLayerError as error:
            _log.warning("container %s has ended; whether its VM is off is not known: %s", self.id[:12], error)

    def _record_exit(self, ended: Ended) -> None:
        self._move(Action.EXIT)
        self._run = None
        self._started.clear()
        if self._checking is not None:
            self._checking.cancel()
        self.state.pid = 0
        self.state.exit_code = ended.exit_code
        self.state.oom_killed = ended.oom_killed
        self.state.error = ended.error
        self.state.finished_unix_ns = time.time_ns()
        ran_s = max(0, self.state.finished_unix_ns - self.state.started_unix_ns) / 1e9
        if ended.oom_killed:
            self.emit("oom")
        self.emit("die", {"exitCode": str(ended.exit_code), "execDuration": str(int(ran_s))})
        self._last = ended
        self._consider_restart(ran_s)
        self.output.end_run()
        self.log.notify()
        self._announce(ended)

    def _announce(self, ended: Ended) -> None:
        waiting, self._next_exit = self._next_exit, asyncio.get_running_loop().create_future()
        waiting.set_result(ended)

    # --- starting again, by the restart policy

    def _consider_restart(self, ran_s: float) -> None:
        """A run has ended, or could not begin: RESTARTING, if another is to follow."""
        policy, count = self.spec.restart, self.state.restart_count
        if not self.record.halted and restarts.wanted(policy, exit_code=self.state.exit_code, restarts=count):
            self._await_restart(self._pauses.after(ran_s))

    def _await_restart(self, pause_s: float) -> None:
        self._move(Action.AWAIT_RESTART)
        self.state.restart_count += 1
        self._pause_s = pause_s
        self._recalled.clear()

    async def _start_again(self) -> None:
        """While it is RESTARTING: waits for the pause to pass or to be ended, and starts it."""
        while self.state.status == states.RESTARTING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s):
                    await self._recalled.wait()
            async with self._lock:
                if self.state.status != states.RESTARTING:
                    return
                await self._settled.wait()
                try:
                    await self._launch()
                except PortLayerError as error:
                    _log.warning("container %s cannot be started again: %s", self.id[:12], error)
                    await self._launch_failed(error)

    async def _give_up_restart(self) -> None:
        self._move(Action.GIVE_UP)
        self.record.halted = True
        self._recalled.set()
        self._announce(self._last)
        await self._save()

    async def _halt(self) -> None:
        """Somebody ends it: no policy starts it again, not even if the port layer dies before it has ended.

        A hypervisor that does not take that down in time does not keep the container from ending.
        """
        self.record.halted = True
        if self.spec.restart.kind != restarts.NEVER:
            await asyncio.wait([self._host.tasks.spawn(self._save(), f"halt {self.id[:12]}")], timeout=_HALT_S)

    async def update(self, policy: types_pb2.RestartPolicy) -> None:
        """Gives it another restart policy. Raises InvalidArgumentError, ConflictError."""
        restarts.check(policy)
        if self.spec.auto_remove and policy.kind != restarts.NEVER:
            raise ConflictError("Restart policy cannot be updated because AutoRemove is enabled for the container")
        async with self._lock:
            self._require_usable()
            before = types_pb2.RestartPolicy()
            before.CopyFrom(self.spec.restart)
            self.spec.restart.CopyFrom(policy)
            try:
                await self._save()
            except PortLayerError:
                self.spec.restart.CopyFrom(before)
                raise
            self.emit("update")

    # --- ending

    async def stop(self, timeout_s: int | None, signal: int) -> bool:
        """Asks init to end, kills it after the time (None: its own, negative: never). False when it did not run."""
        async with self._lock:
            if self.state.status == states.RESTARTING:
                await self._give_up_restart()
                self.emit("stop")
                return True
            if not self.live:
                return False
            exit_ = self._next_exit
            await self._halt()
            await self._wake()
            self._move(Action.STOP)
            grace_s = timeout_s if timeout_s is not None else self._own_stop_timeout()
            number = signal or self.spec.stop_signal
            request = tether_pb2.StopRequest(signal=number)
            if grace_s >= 0:
                request.grace_ms = grace_s * 1000
            self.emit("kill", {"signal": str(number)})
            try:
                await self._live_run().client.stop(request, timeout_s=_STOP_CALL_S)
            except AgentError as error:
                await self._cut_power(f"it does not stop ({error})")
        await self._await_exit(exit_, None if grace_s < 0 else float(grace_s))
        self.emit("stop")
        return True

    async def kill(self, signal: int) -> None:
        """Sends a signal to init; with SIGKILL returns when the run has ended. Raises ConflictError."""
        async with self._lock:
            if self.state.status == states.RESTARTING:
                await self._give_up_restart()
                return
            self._require_live()
            exit_ = self._next_exit
            if signal == self.spec.stop_signal or signal in _ENDING_SIGNALS:
                await self._halt()
            if signal in (SIGKILL, self.spec.stop_signal):
                await self._wake()
            try:
                await self._signal(signal)
                self.emit("kill", {"signal": str(signal)})
            except ConflictError:
                if signal != SIGKILL:
                    raise
                # It has just ended by itself; what is left is to hear of it.
        if signal == SIGKILL:
            self.output.relax()
            await self._await_exit(exit_, _KILL_S)

    async def _await_exit(self, exit_: asyncio.Future[Ended], grace_s: float | None) -> None:
        """Waits for the end of a run; after the time it is killed, and at last the VM's power is cut."""
        for patience in (grace_s, _KILL_S):
            try:
                async with asyncio.timeout(patience):
                    await asyncio.shield(exit_)
                return
            except TimeoutError:
                self.output.relax()
                if run := self._run:
                    request = tether_pb2.SignalRequest(process_id=INIT, signal=SIGKILL)
                    with contextlib.suppress(AgentError):
                        await run.client.signal(request, timeout_s=_STOP_CALL_S)
        await self._cut_power("it does not end")
        await asyncio.shield(exit_)

    async def _signal(self, signal: int) -> None:
        patience_s = _KILL_S if signal == SIGKILL else _SIGNAL_S
        request = tether_pb2.SignalRequest(process_id=INIT, signal=signal)
        try:
            await self._live_run().client.signal(request, timeout_s=patience_s)
        except AgentRpcError as error:
            if error.rpc_code == NOT_FOUND:
                raise ConflictError(f"container {self.id} is not running") from error
            raise
        except AgentError as error:
            if signal != SIGKILL:
                raise
            await self._cut_power(f"its agent does not answer ({error})")

    async def _cut_power(self, why: str) -> None:
        _log.warning("container %s: cutting the power of its VM: %s", self.id[:12], why)
        self._kill_ordered = True
        await self.machine.power_off()

    async def _wake(self) -> None:
        if self.state.status == states.PAUSED:
            await self.machine.resume()
            self._move(Action.RESUME)

    async def restart(self, timeout_s: int | None, signal: int) -> None:
        """Stops it if need be, and starts it."""
        await self.stop(timeout_s, signal)
        await self.start()
        self.emit("restart")

    # --- pausing

    async def pause(self) -> None:
        """Freezes the VM. Raises ConflictError."""
        async with self._lock:
            self._require_live()
            if self.state.status == states.PAUSED:
                raise ConflictError(f"Container {self.id} is already paused")
            await self.machine.pause()
            self._move(Action.PAUSE)
            await self._save()
            self.emit("pause")

    async def resume(self) -> None:
        """Lets a frozen VM go on. Raises ConflictError."""
        async with self._lock:
            if self.state.status != states.PAUSED:
                raise ConflictError(f"Container {self.id} is not paused")
            await self._wake()
            await self._save()
            self.emit("unpause")

    # --- removing

    async def remove(self, *, force: bool) -> None:
        """Destroys machine, disks and log. Raises ConflictError when it runs and `force` is not set."""
        if force and self.state.status == states.STARTING:
            await self._cut_power("it is removed while it starts")  # else a guest that hangs would be waited for
        if force and self.state.status in states.ACTIVE:
            with contextlib.suppress(ConflictError):
                await self.kill(SIGKILL)
        await self._host.tasks.finish(self._remove(), f"remove {self.id[:12]}")

    async def _remove(self) -> None:
        async with self._lock:
            if self.removed.done():
                return
            if self.state.status in states.ACTIVE:
                word = states.word(self.state.status)
                what = " and must be unpaused first"
                if self.state.status != states.PAUSED:
                    what = ": stop the container before removing or force remove"
                raise ConflictError(f'cannot remove container "/{self.name}": container is {word}{what}')
            self._move(Action.REMOVE)
            try:
                # Noted so that a removal cut short is finished later; on a full disk, or when somebody else has removed
                # the machine, removing is what matters.
                with contextlib.suppress(ExhaustedError, NotFoundError):
                    await self._save()
                self.log.close()
                await self._host.driver.destroy(self.machine)
            except PortLayerError as error:
                self._move(Action.REMOVE_FAILED)
                self.state.error = f"removal failed: {error}"
                raise
            self.emit("destroy")
            self.removed.set_result(self._last)
            self.output.end_run()
            self.log.notify()

    async def rename(self, name: str) -> None:
        """Gives it another name; the caller has made sure that it is free."""
        async with self._lock:
            old, self.record.container.name = self.name, name
            try:
                await self._save()
            except PortLayerError:
                self.record.container.name = old
                raise
            self.emit("rename", {"oldName": f"/{old}"})

    # --- what others do to its machine

    async def machine_gone(self) -> None:
        """Somebody removed the VM: the container is no more, and its log with it."""
        if not self.removed.done() and self.state.status != states.REMOVING:
            _log.warning("container %s: its VM was removed by somebody else", self.id[:12])
            await self._halt()
            await self.remove(force=True)

    async def machine_powered_on(self) -> None:
        """Somebody switched the VM on, or let it go on: that starts, or unpauses, the container."""
        async with self._lock:
            if self.state.status == states.PAUSED and await self.machine.power_state() is PowerState.RUNNING:
                self._move(Action.RESUME)
                await self._save()
                self.emit("unpause", {"reason": "the VM was resumed"})
                return
            if self.state.status in states.ACTIVE or self.removed.done() or not self._settled.is_set():
                return
            # Told late of a power-on of our own, the run of which is over: then it is off.
            if await self.machine.power_state() is not PowerState.RUNNING:
                return
        _log.info("container %s is started, since its VM was powered on", self.id[:12])
        await self.start()

    async def machine_suspended(self) -> None:
        """Somebody suspended the VM: the container is paused."""
        async with self._lock:
            if self.state.status != states.RUNNING or await self.machine.power_state() is not PowerState.PAUSED:
                return
            self._move(Action.PAUSE)
            await self._save()
            self.emit("pause", {"reason": "the VM was suspended"})

    # --- waiting

    def next_exit(self) -> asyncio.Future[Ended]:
        """Done when the run under way, or the next one, ends. Shield it."""
        return self._next_exit

    async def stdin_write(self, data: bytes) -> None:
        """Appends to init's stdin; waits for the container to start."""
        await self._started.wait()
        if self._run is not None and self._run.stdin is not None:
            await self._run.stdin.write(data)

    async def stdin_close(self) -> None:
        """Ends init's stdin."""
        await self._started.wait()
        if self._run is not None and self._run.stdin is not None:
            await self._run.stdin.close()

    # --- within

    async def resize(self, rows: int, columns: int) -> None:
        """Sets the size of init's terminal. Before the start it becomes the first size."""
        if self.state.status in (states.CREATED, states.STARTING):
            self.spec.process.terminal_rows, self.spec.process.terminal_columns = rows, columns
            return
        self._require_live()
        await resize_terminal(self._live_run().client, INIT, rows, columns)
        self.emit("resize", {"height": str(rows), "width": str(columns)})

    async def processes(self) -> tether_pb2.ProcessesResponse:
        """The container's processes. Raises ConflictError when it does not run."""
        self._require_live()
        if self.state.status == states.PAUSED:
            raise ConflictError(f"Container {self.name} is paused, and its processes with its VM: unpause it first")
        try:
            processes = await self._live_run().client.processes()
        except AgentRpcError as error:
            raise ConflictError(f"container {self.id} is not running") from error
        self.emit("top")
        return processes

    async def stats(self) -> Usage:
        """Resource usage; nothing is known of it when it does not run."""
        run = self._run
        if run is None or not self.live:
            return Usage(self.machine.spec)
        client = None if self.state.status == states.PAUSED else run.client
        try:
            return await usage.ask(self.machine, client.stats if client is not None else None)
        except AgentError:
            if self._run is not run:
                return Usage(self.machine.spec)  # it ended meanwhile
            raise

    # --- after a restart of the port layer

    async def recover(self) -> None:
        """Takes up what a former port layer left; what needs time goes on in the background."""
        await asyncio.to_thread(self.log.open)
        power = await self._power_found()
        status = self.state.status
        if status == states.REMOVING:
            self._host.tasks.spawn(self._remove(), f"remove {self.id[:12]}")
        elif status == states.STARTING:
            await self._launch_failed(UnavailableError("the port layer ended while the container started"))
        elif status in states.LIVE:
            self._adopt(power)
        else:
            if power is not PowerState.OFF:
                self._settled.clear()
                self._host.tasks.spawn(self._power_off_leftover(), f"power off {self.id[:12]}")
            if status == states.EXITED and self._wanted_at_open():
                self._await_restart(pause_s=0)
        if self.state.status == states.RESTARTING:
            self._host.tasks.spawn(self._start_again(), f"start {self.id[:12]} again")

    def _wanted_at_open(self) -> bool:
        policy, state = self.spec.restart, self.state
        if self.record.halted:
            return policy.kind == restarts.ALWAYS
        return restarts.wanted(policy, exit_code=state.exit_code, restarts=state.restart_count)

    async def _power_found(self) -> PowerState:
        """A machine that does not answer is taken for running: whoever takes it up finds out, and cuts its power."""
        try:
            async with asyncio.timeout(_RECOVER_S):
                return await self.machine.power_state()
        except (TimeoutError, DriverError) as error:
            _log.warning("container %s: its machine does not answer: %s", self.id[:12], error)
            return PowerState.RUNNING

    def _adopt(self, power: PowerState) -> None:
        if power is PowerState.PAUSED:
            self.state.status = states.PAUSED
        elif self.state.status == states.PAUSED:
            self.state.status = states.RUNNING
        run = self._run = Run(self.machine, self.log, self.output, self.record.run)
        run.adopt(self.record.start_request_id, stdin=self.spec.process.open_stdin)
        self._settled.clear()
        self._started.set()
        self._host.tasks.spawn(self._join(run, power), f"adopt {self.id[:12]}")
        self._check_health()

    async def _join(self, run: Run, power: PowerState) -> None:
        """Makes sure that the VM still runs what was started, then watches it. A frozen one is not asked."""
        try:
            if power is PowerState.RUNNING:
                await self._check_started(run)
        except BaseException:
            await run.close()
            raise
        await self._supervise(run)

    async def _check_started(self, run: Run) -> None:
        """Cuts the power of a VM that runs something else, or nothing."""
        try:
            if await run.started_request_id() != self.record.start_request_id:
                await self.machine.power_off()
        except UnavailableError as error:
            _log.warning("container %s: %s", self.id[:12], error)
            await self.machine.power_off()

    async def _power_off_leftover(self) -> None:
        """The exit is recorded, but the VM was not told: let it go in order."""
        run = Run(self.machine, self.log, self.output, self.record.run)
        try:
            run.adopt(self.record.start_request_id, stdin=False)
            with contextlib.suppress(UnavailableError):
                await run.client.power_off(timeout_s=_STOP_CALL_S)
            await self._let_end(run)
        finally:
            await run.close()
            self._settled.set()
        if self.spec.auto_remove:
            await self.remove(force=False)

    def detach(self) -> None:
        """The port layer ends; the VM goes on."""
        self.log.close()

    # --- helpers

    def _own_stop_timeout(self) -> int:
        return self.spec.stop_timeout_s if self.spec.HasField("stop_timeout_s") else DEFAULT_STOP_TIMEOUT_S

    def _live_run(self) -> Run:
        if self._run is None:
            raise ConflictError(f"container {self.id} is not running")
        return self._run

    def _ready_run(self) -> Run:
        """The run that a further process may begin in."""
        self._require_live()
        self._require_not_paused()
        return self._live_run()

    def _require_live(self) -> None:
        if self.state.status == states.RESTARTING:
            raise ConflictError(f"Container {self.id} is restarting, wait until the container is running")
        if not self.live:
            raise ConflictError(f"container {self.id} is not running")

    def _require_not_paused(self) -> None:
        if self.state.status == states.PAUSED:
            raise ConflictError(f"Container {self.name} is paused, unpause the container before exec")

    def _require_usable(self) -> None:
        if self.removed.done():
            raise NotFoundError(f"No such container: {self.id}")
        if self.state.status in (states.REMOVING, states.DEAD):
            raise ConflictError("container is marked for removal and cannot be started")

    def _move(self, action: Action) -> None:
        self.state.status = states.move(self.state.status, action)

    async def _save(self) -> None:
        # An exit is saved beside operations: one at a time, so that the newest state is what stays.
        async with self._saving:
            await self.machine.write_record(self.record.SerializeToString())

    async def _save_surely(self) -> None:
        """An exit must be durable before the agent may forget it; a full disk only delays that."""
        warned = False
        while not self.removed.done():
            try:
                await self._save()
                return
            except NotFoundError:
                return
            except PortLayerError as error:
                if not warned:
                    _log.error("the exit of container %s is not recorded yet: %s", self.id[:12], error)
                    warned = True
                await asyncio.sleep(_SAVE_RETRY_S)


def _method(run: Run) -> str:
    """ "cold-boot", "clone" or "pooled"."""
    return types_pb2.StartMethod.Name(run.method).removeprefix("START_METHOD_").lower().replace("_", "-")


def _words(run: Run) -> dict[str, str]:
    """How it was started, for its event."""
    took = sum(run.phases_ns.values()) / 1e6
    return {"startMethod": _method(run), "startMilliseconds": f"{took:.1f}"}


def _phases(run: Run) -> str:
    """For the log: each phase in milliseconds."""
    return ", ".join(f"{name} {spent / 1e6:.0f}" for name, spent in run.phases_ns.items())
