"""A small event loop on epoll: descriptors, one timer, signals. Single-threaded, as the agent must be to change
namespaces safely.

The channel is watched edge-triggered: a virtio-serial port whose host end is closed reports a hang-up for as long as
that lasts, and a level-triggered loop would spin on it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
# The kernel takes no longer wait than some 24 days; a timer further off is looked at again now and then.
_LONGEST_WAIT_S = 86_400.0


class Loop:
    """Calls back for whatever becomes ready, until `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._running = True

    def watch(self, descriptor: int, callback: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Calls back while (or, edge-triggered, whenever) one of the events holds."""
        if descriptor in self._callbacks:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Stops watching; no effect when it is not watched."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back once."""
        self._timers.append((time.monotonic() + seconds, callback))

    def watch_children(self, callback: Callable[[], None]) -> None:
        """Calls back after any number of children have ended."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

        def ended() -> None:
            os.read(read, 4096)
            callback()

        self.watch(read, ended)

    def stop(self) -> None:
        """Lets `run` return."""
        self._running = False

    def run(self) -> None:
        """Runs until `stop`."""
        while self._running:
            for descriptor, _ in self._epoll.poll(self._until_next_timer()):
                if callback := self._callbacks.get(descriptor):
                    callback()
            now = time.monotonic()
            due = [callback for moment, callback in self._timers if moment <= now]
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for callback in due:
                callback()

    def _until_next_timer(self) -> float | None:
        if not self._timers:
            return None
        wait = min(moment for moment, _ in self._timers) - time.monotonic()
        return min(max(0.0, wait), _LONGEST_WAIT_S)
