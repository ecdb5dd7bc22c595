"""pyvmomi's connection to vSphere: whose session it speaks in, and how long each call took.

vSphere gives a cookie to whoever it does not know, whatever is asked of it, and pyvmomi takes any. So an answer to
somebody whose session was over would end the session that another has begun meanwhile. And a login in a session that
is logged in already, since the answer was lost, is refused like a wrong password. Here a login begins without a cookie,
and the one that it is given is the only one.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from pyVmomi.SoapAdapter import SoapStubAdapter

# Told of each call, in whatever thread made it: the method's name in SOAP, and how many seconds its answer took.
OnCall = Callable[[str, float], None]


class Stub(SoapStubAdapter):
    """Safe to use from many threads. Its cookie is the last login's; there is none before."""

    def __init__(self, **how: Any) -> None:
        self._login = threading.local()
        self._cookie = ""
        super().__init__(**how)  # type: ignore[no-untyped-call]

    @property
    def cookie(self) -> str:
        return "" if self._is_logging_in else self._cookie

    @cookie.setter
    def cookie(self, given: str) -> None:
        if self._is_logging_in:
            self._cookie = given

    @property
    def _is_logging_in(self) -> bool:
        """This thread."""
        return getattr(self._login, "is_under_way", False)

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        self._login.is_under_way = info.wsdlName == "Login"
        try:
            return super().InvokeMethod(mo, info, args, outerStub)  # type: ignore[no-untyped-call]
        finally:
            self._login.is_under_way = False


def metered(stub: Any, on_call: OnCall) -> Any:
    """The same stub. Calls that fail are told of too."""
    invoke = stub.InvokeMethod

    @functools.wraps(invoke)
    def timed(mo: Any, info: Any, *args: Any) -> Any:
        began = time.monotonic()
        try:
            return invoke(mo, info, *args)
        finally:
            on_call(info.wsdlName, time.monotonic() - began)

    stub.InvokeMethod = timed
    return stub
