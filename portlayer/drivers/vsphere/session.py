"""One login to vSphere, with an async face: every call runs in a thread, is tried again where that helps, and survives
the end of the session.

    created --open--> open --close--> closed

**Every call may be repeated.** When a connection breaks nobody knows whether the server did what it was asked, so a
call is simply made again, and whoever calls arranges things so that the second time does no harm: names that can be
taken once, states that are as wanted already, changes guarded by a changeVersion.

The session stays alive by the long poll of `Updates`; when it ends all the same (an administrator ends it, vCenter
restarts) the next call logs in again.

**A vSphere that hangs** keeps nobody waiting for long, however many wait for their turn: see pulse.py.

**Without a session vSphere still answers who reads**: vCenter says of each property that it is missing, ESXi nothing at
all, and either looks as if every VM were gone. So each reading has the session itself in it, or it is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

from pyVim.connect import SmartStubAdapter
from pyVmomi import vim, vmodl

from portlayer.drivers.vsphere import faults
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint, tls_context
from portlayer.drivers.vsphere.pulse import QUESTION_S, SILENCE_S, Pulse
from portlayer.drivers.vsphere.stub import OnCall, Stub, metered
from portlayer.drivers.vsphere.tasks import Tasks
from portlayer.drivers.vsphere.updates import POLL_S, Updates
from portlayer.errors import DriverError, PortLayerError

# Calls under way at once; vCenter queues what is more than a few per client anyway.
CONCURRENCY: Final = 8
# Waits between attempts, seconds; when they are used up the error stands.
DELAYS_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
# For an answer to a single call: tasks are begun, not waited for, by calls, and the long poll ends sooner by itself.
_ANSWER_TIMEOUT_S = 2.0 * POLL_S
_CONNECT_TIMEOUT_S = 10.0
# No further attempt is made so long after the first, seconds: whoever calls is waited for by somebody.
_TRY_S = 30.0
# For the server to hear that the session ends.
_LAST_ANSWER_S = 2.0
_PAGE = 500
# No login is tried for so long after one that was refused, seconds. An account is locked after some wrong passwords in
# a few minutes (vCenter: five in three), and that is everybody's who uses it.
_REFUSED_S = 60.0
# Read with everything: it is there as long as the session is.
_OWN_SESSION = "currentSession"
_log = logging.getLogger(__name__)


class Session:
    """Safe to use from many tasks of one event loop. Every method raises PortLayerError.

    `on_call` is told of each call that was made (see stub.py).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        *,
        concurrency: int = CONCURRENCY,
        delays_s: Sequence[float] = DELAYS_S,
        on_call: OnCall | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._credentials = credentials
        self._on_call = on_call
        self.delays_s = tuple(delays_s)
        self._under_way: set[asyncio.Future[Any]] = set()
        self._slots = asyncio.Semaphore(concurrency)
        self._pulse = Pulse(endpoint.host, self._ask)
        self._login_lock = asyncio.Lock()
        self._logins = 0
        self._trouble = ""  # that was told of, and is not over
        self._account: Any = None
        self._no_login_before = 0.0
        self._closing = asyncio.Event()
        self._threads_ended = False
        self._stub: Any = None
        self._content: Any = None
        self._tls: Any = None
        self.tasks = Tasks(self)
        self.updates = Updates(self)

    @property
    def content(self) -> Any:
        """The vim.ServiceInstanceContent: the server's managers and what it is (`about`)."""
        if self._content is None:
            raise DriverError(f"not connected to {self.endpoint.host}")
        return self._content

    @property
    def account(self) -> Any:
        """The vim.UserSession of the last login: as whom, and since when by the server's clock."""
        if self._account is None:
            raise DriverError(f"not logged in to {self.endpoint.host}")
        return self._account

    @property
    def tls(self) -> Any:
        """The ssl.SSLContext that trusts the endpoint, for connections of other kinds."""
        return self._tls

    @property
    def cookie(self) -> str:
        """The session's cookie, `name=value`, for HTTPS to the datastores."""
        return "" if self._stub is None else str(self._stub.cookie).partition(";")[0]

    @property
    def is_vcenter(self) -> bool:
        """False for a single ESXi."""
        return bool(self.content.about.apiType == "VirtualCenter")

    async def open(self) -> None:
        """Connects and logs in. Nothing is left open when it fails."""
        try:
            self._tls = await self._in_thread(tls_context, self.endpoint)
            self._content = await self._retried(self._connect, f"connecting to {self.endpoint.host}")
            async with self.answering(f"logging in to {self.endpoint.host}"):
                await self._retried_login(0)
            await self.tasks.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Logs out, as far as the server hears it within seconds. Calls under way end with an error."""
        self._closing.set()
        await asyncio.gather(self.updates.close(), self.tasks.close())
        if self._content is not None and self._logins:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LAST_ANSWER_S):
                    await self._in_thread(self._content.sessionManager.Logout)
        # First this: whatever thread gives a connection back from here on sees it, and drops the connection itself.
        self._threads_ended = True
        if self._stub is not None:
            self._stub.DropConnections()
        self._pulse.close()
        for answer in list(self._under_way):
            _set(answer, None, DriverError(f"the session with {self.endpoint.host} is closed"))

    async def call(self, method: Callable[..., Any], *args: Any, what: str, **kwargs: Any) -> Any:
        """The answer of a bound method of pyvmomi. `what` is being done: it begins the message of an error."""
        return await self._retried(lambda: method(*args, **kwargs), what)

    async def poll(self, method: Callable[..., Any], *args: Any) -> Any:
        """As `call`, for the one call that takes long on purpose; made once."""
        try:
            return await self._in_thread(method, *args)
        except Exception as fault:
            raise faults.translated(fault, f"following {self.endpoint.host}") from fault

    async def run(
        self,
        method: Callable[..., Any],
        *args: Any,
        what: str,
        on_progress: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls a method that begins a task, waits for the task's end without asking, gives its result.

        `on_progress` hears percents. Cancelling the caller does not end the task.
        """
        for delay in (*self.delays_s, None):
            task = await self.call(method, *args, what=what, **kwargs)
            try:
                return await self.tasks.outcome(task, what, on_progress)
            except PortLayerError as error:
                if delay is None or error.__cause__ is None or not faults.is_retryable(error.__cause__):
                    raise
                _log.info("%s; trying again in %g s", error, delay)
            await self.pause(delay)
        raise AssertionError("the last attempt raises")

    @contextlib.asynccontextmanager
    async def answering(self, what: str) -> AsyncIterator[None]:
        """For what needs answers of vSphere: DriverError as soon as it hangs, or the session is closed."""
        closed = DriverError(f"{what}: the session with {self.endpoint.host} is closed")
        if self._threads_ended:
            raise closed
        try:
            async with self._pulse.felt():
                yield
        except TimeoutError as error:
            if self._threads_ended:
                raise closed from None
            raise DriverError(
                f"{what}: vSphere does not answer (nothing came for {SILENCE_S + QUESTION_S:g} s)"
            ) from error

    async def read(self, objects: Iterable[Any], paths: Sequence[str]) -> dict[Any, dict[str, Any]]:
        """Properties of objects, all in one call or a few; a property that is unset is left out, and so is an object
        that is gone. Objects may be of one type only.
        """
        wanted = list(objects)
        if not wanted:
            return {}
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=type(wanted[0]), pathSet=list(paths))],
            objectSet=[collector.ObjectSpec(obj=one) for one in wanted],
            reportMissingObjectsInResults=True,
        )
        return await self.retrieve(spec)

    async def retrieve(self, spec: Any) -> dict[Any, dict[str, Any]]:
        """As `read`, for a FilterSpec of the property collector."""
        found: dict[Any, dict[str, Any]] = await self._retried(
            lambda: self._retrieved(spec), "reading the inventory", naming=False
        )
        return found

    def _retrieved(self, spec: Any) -> dict[Any, dict[str, Any]]:
        """Blocks. All pages or nothing: vSphere gives a page once, so what breaks off begins with the first again."""
        collector = vmodl.query.PropertyCollector
        properties, manager = self.content.propertyCollector, self.content.sessionManager
        proof = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.SessionManager, pathSet=[_OWN_SESSION])],
            objectSet=[collector.ObjectSpec(obj=manager)],
        )
        found: dict[Any, dict[str, Any]] = {}
        page = properties.RetrievePropertiesEx([proof, spec], collector.RetrieveOptions(maxObjects=_PAGE))
        while page is not None:
            for one in page.objects:
                # What is not set may come without a value: it is as if it had not come.
                found[one.obj] = {item.name: item.val for item in one.propSet or () if item.val is not None}
            page = properties.ContinueRetrievePropertiesEx(page.token) if page.token else None
        if not found.pop(manager, None):
            raise vim.fault.NotAuthenticated(msg="The session is not authenticated.", object=manager)
        return found

    async def error(self, fault: BaseException, what: str, *, naming: bool = True) -> PortLayerError:
        """As faults.translated; with `naming`, an object that a privilege is lacking on has its name, by which people
        know it: that is read, so reading itself goes without.
        """
        name = ""
        if naming and faults.lacks_privilege(fault) and (thing := getattr(fault, "object", None)) is not None:
            with contextlib.suppress(PortLayerError):
                name = str((await self.read([thing], ["name"])).get(thing, {}).get("name", ""))
        return faults.translated(fault, what, name)

    def _connect(self) -> Any:
        where = {"host": self.endpoint.host, "port": self.endpoint.port, "sslContext": self._tls}
        try:
            version = SmartStubAdapter(**where).version
        except (OSError, http.client.HTTPException):
            raise
        except Exception as error:  # bare ones for what is no list of versions: vCenter is not up yet
            raise http.client.HTTPException(str(error)) from error
        stub: Any = Stub(
            **where,
            version=version,
            poolSize=CONCURRENCY,
            httpConnectionTimeout=_ANSWER_TIMEOUT_S,
        )
        stub.scheme = _Connection
        if self._on_call is not None:
            metered(stub, self._on_call)
        self._stub = stub  # before it has a connection: who gives up now has it closed, too
        return vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()

    async def _login(self, seen: int) -> None:
        """Logs in, unless somebody else did since `seen` logins."""
        async with self._login_lock:
            if self._logins != seen:
                return
            manager = self.content.sessionManager
            user, password = self._credentials.user, self._credentials.password
            what = f"logging in to {self.endpoint.host} as {user}"
            if time.monotonic() < self._no_login_before:
                raise DriverError(f"{what}: user name or password were refused less than {_REFUSED_S:g} s ago")
            try:
                self._account = await self._in_thread(manager.Login, user, password)
            except Exception as error:
                if isinstance(error, vim.fault.InvalidLogin):
                    self._no_login_before = time.monotonic() + _REFUSED_S
                raise faults.translated(error, what) from error
            self._logins += 1
        if seen:
            self.tasks.begin_again()  # what was followed went with the session
            self.updates.begin_again()

    async def _ask(self) -> None:
        """Whether it answers at all. While nobody has connected yet, there is no other question than that."""
        if self._stub is None:
            await asyncio.Event().wait()
        await self._in_thread(vim.ServiceInstance("ServiceInstance", self._stub).CurrentTime)

    async def _retried(self, action: Callable[[], Any], what: str, *, naming: bool = True) -> Any:
        """The result of `action` in a thread, however often it takes. `naming`: as of `error`."""
        async with self.answering(what):
            return await self._attempts(action, what, naming)

    async def _attempts(self, action: Callable[[], Any], what: str, naming: bool) -> Any:
        delays = iter((*self.delays_s, None))
        give_up_at = time.monotonic() + _TRY_S
        relogins = 0
        while True:
            logins = self._logins
            try:
                async with self._slots:
                    answer = await self._in_thread(action)
                self._trouble = ""
                return answer
            except vim.fault.NotAuthenticated as fault:
                if not logins or relogins >= len(self.delays_s):
                    raise await self.error(fault, what, naming=naming) from fault
                relogins += 1
                _log.info("the session with %s is over; logging in again", self.endpoint.host)
                await self._retried_login(logins)
            except Exception as fault:
                delay = next(delays)
                late = time.monotonic() >= give_up_at
                if delay is None or late or not faults.is_retryable(fault) or self._closing.is_set():
                    raise await self.error(fault, what, naming=naming) from fault
                self._tell(what, faults.words(fault), delay)
                await self.pause(delay)

    def _tell(self, what: str, trouble: str, delay: float) -> None:
        """Once: while vCenter is away there are several attempts in a second, for hours."""
        level, self._trouble = logging.DEBUG if trouble == self._trouble else logging.INFO, trouble
        _log.log(level, "%s: %s; trying again in %g s", what, trouble, delay)

    async def _retried_login(self, seen: int) -> None:
        for delay in (*self.delays_s, None):
            try:
                return await self._login(seen)
            except PortLayerError as error:
                if delay is None or error.__cause__ is None or not faults.is_retryable(error.__cause__):
                    raise
            await self.pause(delay)

    async def pause(self, seconds: float) -> None:
        """Waits before another attempt. DriverError as soon as the session is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        if self._closing.is_set():
            raise DriverError(f"the session with {self.endpoint.host} is closed")

    async def _in_thread(self, action: Callable[..., Any], *args: Any) -> Any:
        """What `action` gives. Its thread is a daemon: a server that never answers does not keep the process alive."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._under_way.add(answer)
        answer.add_done_callback(self._under_way.discard)

        def act() -> None:
            try:
                outcome = functools.partial(self._answered, answer, action(*args), None)
            except Exception as error:
                outcome = functools.partial(self._answered, answer, None, error)
            if self._threads_ended and self._stub is not None:
                self._stub.DropConnections()  # its own is in the pool again
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
                loop.call_soon_threadsafe(outcome)

        threading.Thread(target=act, name="vsphere", daemon=True).start()
        return await answer

    def _answered(self, future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
        if not isinstance(error, TimeoutError):
            self._pulse.heard()
        _set(future, answer, error)


class _Connection(http.client.HTTPSConnection):
    """Of one that does not even accept the connection, less patience is wanted than of one that works on an answer."""

    def connect(self) -> None:
        self.timeout = _CONNECT_TIMEOUT_S
        super().connect()
        self.sock.settimeout(_ANSWER_TIMEOUT_S)


def _set(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)
