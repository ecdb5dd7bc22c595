"""What is kept in a VM comes back as it was, in pieces that vSphere takes, and a guest that meddles is found out."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere import extra_config
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.errors import DriverError, ExhaustedError

SPEC = MachineSpec("ab" * 32, "web", 512 << 20, 2, "disk", 10 << 30, "nginx:latest")
TOKEN = "0123456789abcdef" * 2
BOOT = Boot("[ds] iso", "telnet://host:2377")
VALUES = extra_config.fixed(SPEC, TOKEN) | extra_config.boot(BOOT)


@settings(deadline=None)  # the machine may be busy with other things
@given(st.binary(max_size=200_000))
def test_a_record_comes_back_and_its_pieces_are_small(data: bytes) -> None:
    values = extra_config.record(data)
    assert extra_config.read_record(values) == data
    assert all(len(value) <= 48 * 1024 for value in values.values())
    assert [key for key in values if key != extra_config.RECORD_SIZE] == extra_config.record_keys(values)


def test_pieces_of_a_longer_record_before_are_not_taken_for_this_one() -> None:
    values = extra_config.record(b"long" * 30_000) | extra_config.record(b"short")
    assert len(values) > 3
    assert extra_config.read_record(values) == b"short"


def test_a_record_that_a_vm_has_no_room_for_is_refused() -> None:
    with pytest.raises(ExhaustedError, match="pass large values as files"):
        extra_config.record(bytes((512 << 10) + 1))


@pytest.mark.parametrize(
    "meddled",
    [
        {},
        {extra_config.RECORD_SIZE: "many", extra_config.RECORD: ""},
        {extra_config.RECORD_SIZE: "-1", extra_config.RECORD: ""},
        {extra_config.RECORD_SIZE: str(1 << 40), extra_config.RECORD: ""},
        {extra_config.RECORD_SIZE: "3", extra_config.RECORD: "not base64!"},
        {extra_config.RECORD_SIZE: "3", extra_config.RECORD: base64.b64encode(b"longer").decode()},
        {extra_config.RECORD_SIZE: "100000", extra_config.RECORD: ""},
    ],
)
def test_a_record_that_is_not_whole_is_found_out(meddled: dict[str, str]) -> None:
    with pytest.raises(DriverError):
        extra_config.read_record(meddled)


def test_what_never_changes_comes_back() -> None:
    assert extra_config.read(VALUES) == extra_config.Kept(SPEC, TOKEN, BOOT)
    more = json.dumps({**json.loads(VALUES[extra_config.SPEC]), "of_a_newer_version": 1})
    assert extra_config.read(VALUES | {extra_config.SPEC: more}).spec == SPEC


@pytest.mark.parametrize(
    "meddled",
    [
        {extra_config.ID: "cd" * 32},
        {extra_config.SPEC: "{}"},
        {extra_config.SPEC: "[1]"},
        {extra_config.SPEC: "{"},
        {extra_config.TOKEN: "guess"},
        {extra_config.ID: "../x", extra_config.SPEC: VALUES[extra_config.SPEC].replace("ab" * 32, "../x")},
        {extra_config.SPEC: VALUES[extra_config.SPEC].replace("536870912", '"much"')},
        {extra_config.BOOT: "7"},
    ],
)
def test_contradictions_are_found_out(meddled: dict[str, str]) -> None:
    with pytest.raises(DriverError):
        extra_config.read(VALUES | meddled)


def test_the_guest_does_not_see_what_is_not_for_it() -> None:
    for_the_guest = {key: value for key, value in VALUES.items() if key.startswith("guestinfo.")}
    assert TOKEN not in json.dumps(for_the_guest)
