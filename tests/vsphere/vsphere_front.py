"""A front between the driver and the simulator: it adds what the simulator lacks of a vCenter, and makes trouble.

Everything passes unchanged but for the shims (vsphere_shims, listed in README.md) and for what a test injects:

    front.inject("CreateVM_Task", fail_task(vim.fault.NoDiskSpace()))        # see vsphere_trouble
    front.inject("PowerOnVM_Task", cut_after(), skip=1, times=2)
    front.down(); front.up()                                                  # vCenter restarts
    assert front.calls["CreateVM_Task"] == 1

It works in a thread of its own, so a test may be synchronous or not. Methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import h11
import vsphere_vsan
from pyVmomi import vim
from vsphere_control import Control
from vsphere_http import ClientConnection, Upstream
from vsphere_ports import held_port
from vsphere_shims import SHIMS, privilege
from vsphere_simulator import HOST, Simulator, session
from vsphere_soap import Call, Reply, fault_reply, parse

_T = TypeVar("_T")
Forward = Callable[[], Awaitable[Reply]]
Action = Callable[["Front", Call, Forward], Awaitable[Reply]]
# Allowed to everybody; what is read of the ServiceInstance is too.
_BEFORE_LOGIN: Final = {
    "Login",
    "LoginByToken",
    "LoginExtensionByCertificate",
    "CloneSession",
    "RetrieveServiceContent",
    # Which read nothing then: the answer says of each property that it is missing.
    "RetrieveProperties",
    "RetrievePropertiesEx",
}
_LONG: Final = {"WaitForUpdatesEx", "WaitForUpdates"}
_UNAUTHORIZED = 401
_THREADS = 32
_ANSWER_S = 60.0


class Injection:
    """Trouble that waits for calls of one method: after `skip` of them for the next `times`."""

    def __init__(
        self, method: str, action: Action, times: int | None, skip: int, when: Callable[[Call], bool] | None
    ) -> None:
        self.method = method
        self.action = action
        self.hits = 0
        self.hit = threading.Event()
        self._left = times
        self._skip = skip
        self._when = when

    def takes(self, call: Call) -> bool:
        if call.method != self.method or self._left == 0 or (self._when is not None and not self._when(call)):
            return False
        if self._skip:
            self._skip -= 1
            return False
        if self._left is not None:
            self._left -= 1
        self.hits += 1
        self.hit.set()
        return True


class Front:
    """Opened by a `with` statement."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        # Calls by method as they came, and those of them that reached the simulator.
        self.calls: Counter[str] = Counter()
        self.forwarded: Counter[str] = Counter()
        # Privileges that nobody has: calls that need one of them are refused.
        self.denied: set[str] = set()
        # Of imports by leases: folder and name of the VM, by lease. How leases call this front, if not by its address.
        self.leases: dict[str, tuple[str, str]] = {}
        self.nfc_host = ""
        self.nfc_thumbprint = ""
        self.control = Control(simulator)
        self.port = 0
        self._injections: list[Injection] = []
        self._sessions: dict[str, asyncio.Event] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(_THREADS, "front")
        self._thread = threading.Thread(target=self._loop.run_forever, name="front")
        self._context = simulator.certificate.client_context()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/sdk"

    @contextlib.contextmanager
    def open(self) -> Iterator[Front]:
        with contextlib.closing(held_port()) as held, self.control.open():
            self.port = int(held.getsockname()[1])
            self._thread.start()
            try:
                self.up()
                yield self
            finally:
                self._in_loop(self._close())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._threads.shutdown()
                self._loop.close()

    @contextlib.contextmanager
    def connected(self) -> Iterator[vim.ServiceInstance]:
        """A session of plain pyvmomi through the front."""
        simulator = self.simulator
        with session(self.port, simulator.certificate, simulator.user, simulator.password) as instance:
            yield instance

    def inject(
        self,
        method: str,
        action: Action,
        *,
        times: int | None = 1,
        skip: int = 0,
        when: Callable[[Call], bool] | None = None,
    ) -> Injection:
        """Trouble for calls of `method` (by its name in SOAP, or PUT, GET, HEAD, DELETE for datastores' files).

        `times` None: for good. The first injection that takes a call gets it.
        """
        injection = Injection(method, action, times, skip, when)
        self._injections.append(injection)
        return injection

    def clear(self) -> None:
        """No more trouble, counters at nothing."""
        self._injections.clear()
        self.denied.clear()
        self.calls.clear()
        self.forwarded.clear()

    def drop_sessions(self) -> None:
        """Every session ends, as when an administrator ends them: calls and long polls get NotAuthenticated."""
        self._in_loop(self.end_sessions())

    def down(self) -> None:
        """vCenter stops: connections break, new ones are refused, sessions are over. Its inventory stays."""
        self._in_loop(self.stop())

    def up(self) -> None:
        """vCenter answers again, at the port where it did before."""
        self._in_loop(self.listen())

    def settle(self) -> None:
        """Waits for what goes on behind answers: restarts, tasks."""
        self._in_loop(self._settled())

    # For shims and trouble, in the front's own thread.

    async def soap(self, body: bytes, cookie: str, upstream: Upstream, request: h11.Request) -> Reply:
        call = parse(body, _session_key(cookie))
        return await self._handled(call, lambda: self._passed(call, upstream, request))

    async def file(self, method: str, target: str, cookie: str, carry: Forward) -> Reply:
        call = Call(method, "folder", target, b"", _session_key(cookie))
        return await self._handled(call, lambda: self._file(call, carry))

    async def disk(self, target: str, sent: Path, carry: Forward) -> Reply:
        """What a lease brings, which needs no session; `sent` has it once it is carried."""

        async def forward() -> Reply:
            self.forwarded["POST"] += 1
            reply = await carry()
            await self.controlled(vsphere_vsan.received, self, target, sent)
            return reply

        return await self._handled(Call("POST", "nfc", target, b"", ""), forward)

    async def controlled(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Calls a method of `control` in a thread."""
        return await self._loop.run_in_executor(self._threads, lambda: action(*arguments))

    def lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Goes on behind an answer that has been given."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def ended(self, reply: Reply) -> None:
        """Waits until the task that `reply` names has ended, one way or the other."""
        if reply.task is not None:
            with contextlib.suppress(Exception):
                await self.controlled(self.control.outcome, reply.task)

    async def end_sessions(self) -> None:
        ended, self._sessions = self._sessions, {}
        await self.controlled(self.control.end_sessions, set(ended))
        for event in ended.values():
            event.set()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = self._connections - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)
        await self.end_sessions()

    async def listen(self) -> None:
        context = self.simulator.certificate.server_context()
        self._server = await asyncio.start_server(self._serve, HOST, self.port, ssl=context)

    async def _settled(self) -> None:
        while self._background:
            await asyncio.wait(self._background)

    async def _close(self) -> None:
        await self.stop()
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        upstream = Upstream(self.simulator.port, self._context)
        with contextlib.suppress(asyncio.CancelledError):  # by `stop`
            await ClientConnection(self, reader, writer, upstream).serve()

    async def _handled(self, call: Call, forward: Forward) -> Reply:
        self.calls[call.method] += 1
        injection = next((one for one in list(self._injections) if one.takes(call)), None)
        return await (forward() if injection is None else injection.action(self, call, forward))

    async def _passed(self, call: Call, upstream: Upstream, request: h11.Request) -> Reply:
        if not self._allowed(call):
            return fault_reply(_not_authenticated(self.control, call))
        lacking = privilege(call)
        if lacking in self.denied:
            thing = self.control.managed(call.kind, call.target)
            return fault_reply(vim.fault.NoPermission(msg="Permission denied.", object=thing, privilegeId=lacking))
        shim = SHIMS.get(call.method)
        if shim is None:
            return await self._forwarded(call, upstream, request)
        return await shim(self, call, lambda: self._forwarded(call, upstream, request))

    async def _forwarded(self, call: Call, upstream: Upstream, request: h11.Request) -> Reply:
        self.forwarded[call.method] += 1
        ended = self._sessions.get(call.cookie)
        if call.method in _LONG and ended is not None:
            reply = await self._until(ended, upstream.soap(request, call.body))
            return reply or fault_reply(_not_authenticated(self.control, call))
        reply = await upstream.soap(request, call.body)
        for name, value in reply.headers:
            if name == b"set-cookie" and (key := _session_key(value.decode())):
                self._sessions[key] = asyncio.Event()
        if call.method == "Logout":
            self._sessions.pop(call.cookie, None)
        return reply

    async def _until(self, ended: asyncio.Event, answer: Coroutine[Any, Any, Reply]) -> Reply | None:
        """The answer, or None as soon as the session is over."""
        asked = self._loop.create_task(answer)
        over = self._loop.create_task(ended.wait())
        try:
            await asyncio.wait({asked, over}, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else None
        finally:
            asked.cancel()
            over.cancel()
            await asyncio.wait({asked, over})

    async def _file(self, call: Call, carry: Forward) -> Reply:
        if call.cookie not in self._sessions:
            return Reply(_UNAUTHORIZED, b"", ((b"www-authenticate", b'Basic realm="VMware HTTP server"'),))
        if (refused := vsphere_vsan.refuses(call.target, call.method)) is not None:
            return refused
        self.forwarded[call.method] += 1
        return await carry()

    def _allowed(self, call: Call) -> bool:
        if call.method in _BEFORE_LOGIN or call.cookie in self._sessions:
            return True
        return call.method == "Fetch" and b'type="ServiceInstance"' in call.body

    def _in_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)


def _not_authenticated(control: Control, call: Call) -> vim.fault.NotAuthenticated:
    thing = control.managed(call.kind, call.target)
    return vim.fault.NotAuthenticated(msg="The session is not authenticated.", object=thing, privilegeId="System.View")


def _session_key(cookie: str) -> str:
    found = re.search(r'vmware_soap_session="?([^";]+)', cookie)
    return found.group(1) if found else ""
