"""What vCenter refuses and the simulator takes, found in the driver's calls by vSphere's own type tables.

Properties that do not exist (vCenter: InvalidProperty), and words that are none of an enumeration (InvalidRequest).
Required properties that are missing are pyvmomi's to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pyVmomi import VmomiSupport, vmodl

_PropertySpec: Any = vmodl.query.PropertyCollector.PropertySpec
_STEP = re.compile(r'(\w+)(\[(?:"[^"]*"|\w+)\])?(?:\.|$)')


def strict(stub: Any, faults: list[str]) -> Any:
    """The same stub of pyvmomi, which notes in `faults` what is wrong with a call before it is made."""
    invoke = stub.InvokeMethod

    def checked(thing: Any, info: Any, arguments: Any) -> Any:
        faults.extend(f"{info.wsdlName}: {fault}" for argument in arguments for fault in found_in(argument))
        return invoke(thing, info, arguments)

    stub.InvokeMethod = checked
    return stub


def found_in(value: Any) -> Iterator[str]:
    """What is wrong with an argument."""
    if isinstance(value, _PropertySpec):
        for path in value.pathSet:
            if not _leads_somewhere(value.type, path):
                yield f"{value.type.__name__} has no {path}"
    elif isinstance(value, list):
        for one in value:
            yield from found_in(one)
    elif isinstance(value, VmomiSupport.DataObject):
        for info in value._GetPropertyList():
            held = getattr(value, info.name)
            words = getattr(info.type, "values", None)
            if isinstance(words, list) and held is not None and str(held) not in words:
                yield f"{held!r} is no {info.type.__name__} ({type(value).__name__}.{info.name})"
            yield from found_in(held)


def _leads_somewhere(kind: Any, path: str) -> bool:
    """Whether objects of a kind have this property. Elements of arrays go by their keys: `device[4000].backing`."""
    for name, key in _STEP.findall(path):
        try:
            kind = kind._GetPropertyInfo(name).type
        except (AttributeError, KeyError):
            return False
        if key:
            if not issubclass(kind, list):
                return False
            kind = kind.Item
    return True
