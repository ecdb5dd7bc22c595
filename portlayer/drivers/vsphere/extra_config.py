"""What we keep in a VM's extraConfig, as keys and values.

    guestinfo.vch.id            the container's id
    guestinfo.vch.spec          the shape of the machine (MachineSpec), JSON
    guestinfo.vch.record        the port layer's record, base64, its first piece
    guestinfo.vch.record.N      its further pieces, N from 1
    guestinfo.vch.record.size   how many bytes it has, so that an old piece is not taken for one of it
    vch.token                   what the serial port authorises itself with; not for the guest
    vch.boot                    what the VM was last made to boot from and dial, JSON
    vch.disk                    where the writable disk is while the VM has lent it to a clone, else empty
    vch.template                of a template: what it is, JSON; "being made" until it is one
    vch.clone                   of a clone that is no container's (yet): its template
    vch.removal                 of a VM that is being removed: where the disks are that it had, JSON

A value has to stay below 64 KiB and all of guestinfo below 1 MiB (the RPC's limits). All values of one write go in one
reconfiguration, which vSphere does whole or not at all. A guest can write guestinfo unless it is kept from it: VMs get
`isolation.tools.setInfo.disable`, and what is read back is checked as anything from a guest.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from portlayer.drivers.base import MachineSpec
from portlayer.errors import DriverError, ExhaustedError

ID = "guestinfo.vch.id"
SPEC = "guestinfo.vch.spec"
RECORD = "guestinfo.vch.record"
RECORD_SIZE = "guestinfo.vch.record.size"
TOKEN = "vch.token"
BOOT = "vch.boot"
LENT_DISK = "vch.disk"
TEMPLATE = "vch.template"
CLONE = "vch.clone"
REMOVAL = "vch.removal"
# What most records are, whole.
RECORD_BEGINS = (RECORD_SIZE, RECORD)
_PIECE = 48 * 1024  # characters
_MAX_RECORD_BYTES = 512 * 1024
_ID = re.compile(r"[0-9a-f]{12,64}")
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Boot:
    """What a VM is made to boot from, and where its serial port dials: what a newer port layer may have to change."""

    guest_iso: str
    proxy_uri: str


@dataclass(frozen=True)
class Kept:
    """What was read of a VM that is ours. `record`: what begins its record, of one that was found."""

    spec: MachineSpec
    token: str
    boot: Boot
    lent_disk: str = ""
    record: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TemplateFacts:
    """What is kept of a template. `key`: digest of everything that its clones share with it."""

    key: str
    memory_bytes: int
    cpus: int
    created_unix_ns: int
    made_in_ns: int


def fixed(spec: MachineSpec, token: str) -> dict[str, str]:
    """What never changes."""
    return {ID: spec.id, SPEC: msgspec.json.encode(spec).decode(), TOKEN: token}


def boot(boot: Boot) -> dict[str, str]:
    return {BOOT: msgspec.json.encode(boot).decode()}


def lent_disk(path: str) -> dict[str, str]:
    return {LENT_DISK: path}


def template(facts: TemplateFacts) -> dict[str, str]:
    return {TEMPLATE: msgspec.json.encode(facts).decode()}


def clone(template_id: str) -> dict[str, str]:
    """Of a clone, which begins with all that its template has; without a template it is a container's."""
    return {CLONE: template_id, TEMPLATE: ""}


def removal(paths: Sequence[str]) -> dict[str, str]:
    return {REMOVAL: msgspec.json.encode(paths).decode()}


def read_removal(value: str | None) -> list[str]:
    """The paths. DriverError when it is nothing of ours."""
    if not value:
        return []
    try:
        return msgspec.json.decode(value, type=list[str])
    except msgspec.MsgspecError as error:
        raise DriverError(f"the VM's {REMOVAL} is not readable: {error}") from error


def record(data: bytes) -> dict[str, str]:
    """ExhaustedError when there is no room for so much."""
    if len(data) > _MAX_RECORD_BYTES:
        raise ExhaustedError(
            f"the container's configuration has {len(data)} bytes, a VM has room for"
            f" {_MAX_RECORD_BYTES}: pass large values as files of an image or a volume"
        )
    text = base64.b64encode(data).decode()
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)] or [""]
    return {RECORD_SIZE: str(len(data))} | {_piece(number): piece for number, piece in enumerate(pieces)}


def record_keys(values: Mapping[str, str]) -> list[str]:
    """The keys of the record whose size is among the values. DriverError when there can be no such record."""
    try:
        size = int(values[RECORD_SIZE])
    except (KeyError, ValueError) as error:
        raise DriverError("the VM does not say how large its record is") from error
    if not 0 <= size <= _MAX_RECORD_BYTES:
        raise DriverError(f"the VM says that its record has {size} bytes")
    return pieces_of(size)


def pieces_of(size: int) -> list[str]:
    """The keys of a record of `size` bytes."""
    characters = 4 * -(-size // 3)
    return [_piece(number) for number in range(max(1, -(-characters // _PIECE)))]


def read_record(values: Mapping[str, str]) -> bytes:
    """The record out of `values`. DriverError when it is not whole."""
    try:
        data = base64.b64decode("".join(values[key] for key in record_keys(values)), validate=True)
    except (KeyError, ValueError, binascii.Error) as error:
        raise DriverError(f"the VM's record is not whole: {error!r}") from error
    if str(len(data)) != values[RECORD_SIZE]:
        raise DriverError(f"the VM's record has {len(data)} bytes instead of {values[RECORD_SIZE]}")
    return data


def read(values: Mapping[str, str]) -> Kept:
    """What the other keys say. DriverError when that makes no machine."""
    try:
        spec = msgspec.json.decode(
            values[SPEC], type=MachineSpec
        )  # exact types; what a newer version added is left out
        boot = msgspec.json.decode(values[BOOT], type=Boot)
        kept = Kept(spec, values[TOKEN], boot, values.get(LENT_DISK, ""), _some(values, RECORD_BEGINS))
    except (KeyError, msgspec.MsgspecError) as error:
        raise DriverError(f"its extraConfig is not readable: {error!r}") from error
    if spec.id != values.get(ID) or not _ID.fullmatch(spec.id) or not _TOKEN.fullmatch(kept.token):
        raise DriverError("its extraConfig contradicts itself")
    return kept


def read_template(values: Mapping[str, str]) -> TemplateFacts:
    """DriverError when it never became one."""
    try:
        facts = msgspec.json.decode(values[TEMPLATE], type=TemplateFacts)
    except (KeyError, msgspec.MsgspecError) as error:
        raise DriverError("it was not made to its end") from error
    if not _TOKEN.fullmatch(values.get(TOKEN, "")):
        raise DriverError("it has no token")
    return facts


def _some(values: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    return {key: values[key] for key in keys if key in values}


def _piece(number: int) -> str:
    return f"{RECORD}.{number}" if number else RECORD
