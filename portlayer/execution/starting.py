"""Starting a container: its VM powered on, in a clone or by a boot, and its init launched; or why that failed."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator

from portlayer.drivers.base import PowerState
from portlayer.errors import LaunchError, PortLayerError
from portlayer.execution import process_spec, states
from portlayer.execution.current_run import CurrentRun
from portlayer.execution.host import Host
from portlayer.execution.life import Life
from portlayer.execution.power import Power
from portlayer.execution.restarts import Restarts
from portlayer.execution.run import Ended, Run
from portlayer.execution.sizes import Size
from portlayer.execution.states import Action
from portlayer.v1 import types_pb2
from tether.v1 import tether_pb2

# Of a container that could not be started for another reason than its program.
_NO_LAUNCH_EXIT_CODE = 128
_log = logging.getLogger(__name__)


class Starting:
    """Of one container. The caller holds its lock."""

    def __init__(
        self, host: Host, life: Life, size: Size, *, current: CurrentRun, power: Power, restarts: Restarts
    ) -> None:
        self._host = host
        self._life = life
        self._size = size
        self._current = current
        self._power = power
        self._restarts = restarts

    async def launch(self) -> Run:
        """A run in which init has been launched. Raises LaunchError, UnavailableError and others: see `failed`.

        A port layer that ends meanwhile leaves the container STARTING for the next one.
        """
        life = self._life
        life.move(Action.START)
        self._power.begin()
        life.record.run += 1
        life.record.start_request_id = secrets.token_hex(16)
        life.state.error = ""
        await life.save()
        with self._host.clones.starting():
            async with _closed_on_failure(await self._powered_on()) as run:
                self._power.require()
                response = await run.launch(self._request())
                self._note(run, response.pid)
                await life.save()
        self._host.metrics.started(_method(run), run.phases_ns)
        life.emit("start", _words(run))
        _log.info("container %s started: %s, in ms: %s", life.short_id, _method(run), _phases(run))
        return run

    async def failed(self, error: PortLayerError) -> None:
        """Cuts the power and records why there is no run."""
        life, state = self._life, self._life.state
        self._host.metrics.start_failed()
        with contextlib.suppress(PortLayerError):
            await life.machine.power_off()
        if state.status == states.STARTING:
            life.move(Action.LAUNCH_FAILED if state.started_unix_ns else Action.FIRST_LAUNCH_FAILED)
        elif life.live:
            life.move(Action.EXIT)
        state.exit_code = error.exit_code if isinstance(error, LaunchError) else _NO_LAUNCH_EXIT_CODE
        state.error = str(error)
        state.finished_unix_ns = time.time_ns() if state.started_unix_ns else 0
        self._current.end(Ended(state.exit_code))
        # The caller of a start is told why; those who wait are not told again.
        if state.restart_count:
            # Nobody called: what may pass is tried again, what cannot be launched is not.
            if not isinstance(error, LaunchError):
                self._restarts.consider(ran_s=0)
            self._current.announce()
        with contextlib.suppress(PortLayerError):
            await life.save()

    async def _powered_on(self) -> Run:
        """The machine in a clone, where there is one for it and nothing goes wrong with it; else booted."""
        machine = self._life.machine
        taken = None
        if not self._life.spec.cold_boot and await machine.power_state() is not PowerState.RUNNING:
            taken = await self._host.clones.take(machine.spec)
        if taken is not None:
            try:
                async with _closed_on_failure(self._current.new()) as run:
                    await run.move_in(taken)
                return run
            except PortLayerError as error:
                if self._power.cut_by_order:
                    raise
                _log.warning("container %s boots, as its clone was of no use: %s", self._life.short_id, error)
            await machine.power_off()
        self._power.require()
        async with _closed_on_failure(self._current.new()) as run:
            await run.boot()
        return run

    def _request(self) -> tether_pb2.StartRequest:
        life, size = self._life, self._size
        return process_spec.init_request(
            life.spec,
            life.record.start_request_id,
            memory_limit_bytes=size.memory_limit_bytes,
            cpu_limit_ns_per_s=size.cpu_limit_ns_per_s,
            machine_id=life.id[:32],
            disks=self._host.driver.disk_names,
        )

    def _note(self, run: Run, pid: int) -> None:
        """That it runs, and how it was started."""
        self._life.move(Action.LAUNCHED)
        state, container = self._life.state, self._life.record.container
        state.pid = pid
        state.exit_code = 0
        state.oom_killed = False
        state.started_unix_ns = time.time_ns()
        container.start_method, container.template_id = run.method, run.template_id
        container.start_phases_ns.clear()
        container.start_phases_ns.update(run.phases_ns)


@contextlib.asynccontextmanager
async def _closed_on_failure(run: Run) -> AsyncIterator[Run]:
    try:
        yield run
    except BaseException:
        await run.close()
        raise


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
