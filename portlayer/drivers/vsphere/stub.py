"""pyvmomi's connection to vSphere tells how long each call took: what is vSphere's time, and what is ours."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

# Told of each call, in whatever thread made it: the method's name in SOAP, and how many seconds its answer took.
OnCall = Callable[[str, float], None]


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
