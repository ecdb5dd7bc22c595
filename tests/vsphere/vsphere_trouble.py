"""What a test can have go wrong with a call; for `Front.inject`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyVmomi import vmodl
from vsphere_front import Action, Forward, Front
from vsphere_http import CutError
from vsphere_soap import Call, Reply, envelope, fault_reply, task_reply

_UNAVAILABLE = 503
_LOOK_S = 0.01


def raise_fault(fault: vmodl.MethodFault) -> Action:
    """The method itself is refused; nothing is done."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        return fault_reply(fault)

    return act


def fail_task(fault: vmodl.MethodFault) -> Action:
    """The task ends in this fault; nothing is done."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        return await _failed(front, call, fault)

    return act


def fail_task_after(fault: vmodl.MethodFault) -> Action:
    """The work is done, and its task ends in this fault all the same."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await front.ended(await forward())
        return await _failed(front, call, fault)

    return act


def fail_creation_half_way(fault: vmodl.MethodFault) -> Action:
    """The files of a VM are made, there is no VM, its task ends in this fault, and nobody takes the files back."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        vm = await front.controlled(front.control.outcome, (await forward()).task)
        await front.controlled(front.control.unregister, vm._moId)
        return await _failed(front, call, fault)

    return act


def cut_before() -> Action:
    """The connection breaks before the simulator has heard anything."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        raise CutError

    return act


def cut_after() -> Action:
    """The work is done to its end, and the answer is lost."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await front.ended(await forward())
        raise CutError

    return act


def refuse_file(status: int, body: bytes) -> Action:
    """The datastore takes all that is sent and then says this; nothing is written."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await forward()
        path = Path(unquote(urlsplit(call.target).path.removeprefix("/folder/")))
        os.truncate(front.simulator.datastore_dir() / path, 0)
        return Reply(status, body)

    return act


def rewritten(what: bytes, by: bytes) -> Action:
    """The answer says something else: a regular expression, and what stands in its place."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        return Reply(reply.status, re.sub(what, by, reply.body), reply.headers)

    return act


def unavailable() -> Action:
    """What a vCenter answers while it starts: HTTP 503."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        return Reply(_UNAVAILABLE, b"Service Unavailable", ((b"content-type", b"text/plain"),))

    return act


def slow(seconds: float) -> Action:
    """The call waits before it is carried on."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await asyncio.sleep(seconds)
        return await forward()

    return act


def held(gate: threading.Event) -> Action:
    """The call waits until the test sets the event."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        while not gate.is_set():
            await asyncio.sleep(_LOOK_S)
        return await forward()

    return act


def drop_session() -> Action:
    """All sessions end just before the call."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await front.end_sessions()
        return await forward()

    return act


def read_nothing() -> Action:
    """All sessions end just before the call, a reading, which is answered as ESXi does then: by nothing at all."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await front.end_sessions()
        return Reply(200, envelope(f'<{call.method}Response xmlns="urn:vim25"></{call.method}Response>'))

    return act


def with_cookie(key: str) -> Action:
    """The answer has the cookie of a session that is not logged in: vCenter took the caller for somebody new."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        given = f'vmware_soap_session="{key}"; Path=/; HttpOnly; Secure'
        return Reply(reply.status, reply.body, (*reply.headers, (b"set-cookie", given.encode())))

    return act


def no_soap(body: bytes) -> Action:
    """Something else than vCenter answers in its place, with success."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        return Reply(200, body, ((b"content-type", b"text/html"),))

    return act


def restart(seconds: float, *, after: bool) -> Action:
    """vCenter stops at this call (`after` the work was done, or before) and is back some time later."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        if after:
            await front.ended(await forward())
        front.spawn(_again(front, seconds))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # this connection breaks with the others
        raise CutError

    return act


async def _again(front: Front, seconds: float) -> None:
    await front.stop()
    await asyncio.sleep(seconds)
    await front.listen()


async def _failed(front: Front, call: Call, fault: vmodl.MethodFault) -> Reply:
    entity = front.control.managed(call.kind, call.target)
    return task_reply(call.method, await front.controlled(front.control.failed_task, entity, fault))
