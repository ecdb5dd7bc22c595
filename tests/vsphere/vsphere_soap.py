"""SOAP as vCenter and pyvmomi speak it, as far as a front between them looks at it: calls, faults and answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pyVmomi import SoapAdapter, VmomiSupport, vmodl

_BODY = "{http://schemas.xmlsoap.org/soap/envelope/}Body"
_NAMESPACES = (
    b' xmlns="urn:vim25" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    b' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
)
_ENVELOPE = """<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
 xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<soapenv:Body>{}</soapenv:Body>
</soapenv:Envelope>"""
VERSION = VmomiSupport.newestVersions.GetName("vim")


@dataclass(frozen=True)
class Call:
    """A request: of a SOAP method, or of HTTP on a datastore's files (the method is then PUT, GET, HEAD or DELETE)."""

    method: str
    # Whose method, by type and id; for files the path.
    kind: str
    target: str
    body: bytes
    cookie: str

    def text(self, *path: str) -> str | None:
        """The text of an element below the method's, by names without name spaces."""
        found = self._element(*path)
        return None if found is None else found.text

    def reference(self, *path: str) -> str | None:
        """The id of a managed object among the arguments."""
        return self.text(*path)

    def decoded(self, name: str, kind: type) -> Any:
        """The argument `name` as an object of pyvmomi."""
        outermost = re.search(rb"<%b\b.*</%b>" % (name.encode(), name.encode()), self.body, re.DOTALL)
        if outermost is None:
            raise ValueError(f"{self.method} without {name}")
        opening = len(name) + 1
        text = outermost.group()
        return SoapAdapter.Deserialize(text[:opening] + _NAMESPACES + text[opening:], kind)

    def _element(self, *path: str) -> ElementTree.Element | None:
        found: ElementTree.Element | None = _call_of(self.body)
        for name in path:
            if found is None:
                return None
            found = next((child for child in found if _local(child) == name), None)
        return found


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"text/xml; charset=utf-8"),)

    @property
    def task(self) -> str | None:
        """The id of the task that the method began."""
        found = re.search(rb'<returnval[^>]*type="Task"[^>]*>([^<]+)</returnval>', self.body)
        return found.group(1).decode() if found and self.status == 200 else None


def parse(body: bytes, cookie: str) -> Call:
    method = _call_of(body)
    this = next(child for child in method if _local(child) == "_this")
    return Call(_local(method), this.get("type", ""), this.text or "", body, cookie)


def fault_reply(fault: vmodl.MethodFault) -> Reply:
    """The method itself failed."""
    detail = SoapAdapter.SerializeFaultDetail(
        fault, VmomiSupport.Object(name=f"{fault._wsdlName}Fault", type=object, version=VERSION, flags=0), VERSION
    )
    words = fault.msg or type(fault).__name__
    inner = (
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{words}</faultstring>"
        f"<detail>{detail}</detail></soapenv:Fault>"
    )
    return Reply(500, envelope(inner))


def envelope(inner: str) -> bytes:
    return _ENVELOPE.format(inner).encode()


def task_reply(method: str, task: str) -> Reply:
    """The method has begun a task."""
    inner = f'<{method}Response xmlns="urn:vim25"><returnval type="Task">{task}</returnval></{method}Response>'
    return Reply(200, envelope(inner))


def _call_of(body: bytes) -> ElementTree.Element:
    found = ElementTree.fromstring(body).find(_BODY)
    if found is None or not len(found):
        raise ValueError("no SOAP call")
    return found[0]


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
