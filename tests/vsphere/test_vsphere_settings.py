"""Options of a VCH on vSphere: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portlayer.drivers.vsphere.settings import (
    UNLIMITED,
    PoolLimits,
    SerialSettings,
    Shares,
    VsphereSettings,
    from_options,
    parse_target,
)
from portlayer.errors import InvalidArgumentError


def settings(**options: Any) -> VsphereSettings:
    return from_options({"target": "me@vcenter", **options}, "secret")


@pytest.mark.parametrize(
    ("target", "user", "host", "port"),
    [
        ("root@esx1", "root", "esx1", 443),
        ("vch@vsphere.local@vc.example.org:8443", "vch@vsphere.local", "vc.example.org", 8443),
        ("EXAMPLE\\vch@10.0.0.1", "EXAMPLE\\vch", "10.0.0.1", 443),
        ("root@[fe80::1]:444", "root", "fe80::1", 444),
        ("root@[fe80::1]", "root", "fe80::1", 443),
    ],
)
def test_targets(target: str, user: str, host: str, port: int) -> None:
    said, endpoint = parse_target(target, None, None)
    assert (said, endpoint.host, endpoint.port) == (user, host, port)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "vcenter"}, "USER@HOST"),
        ({"target": "@vcenter"}, "USER@HOST"),
        ({"target": "me@"}, "HOST:PORT"),
        ({"target": "me@vc:99999"}, "HOST:PORT"),
        ({"target": "me@vc/sdk"}, "HOST:PORT"),
        ({"target": "me:secret@vc"}, "no password there"),
        ({"ca": Path("/ca.pem"), "thumbprint": "AA"}, "--ca and --thumbprint"),
        ({"container_network": ["we b:x"]}, "NAME:PORTGROUP"),
        ({"container_network": ["web:"]}, "NAME:PORTGROUP"),
        ({"container_network": ["web:a", "web:b"]}, "'web' is taken"),
        ({"container_network": ["bridge:a"]}, "'bridge' is taken"),
        ({"cpu_limit": "lots"}, "--cpu-limit: 'lots' is no amount of CPU"),
        ({"memory_reservation": "unlimited"}, "--memory-reservation: 'unlimited' is no size"),
        ({"memory_limit": "1g", "memory_reservation": "2g"}, "--memory-reservation is more than --memory-limit"),
        ({"shares": "much"}, "low, normal, high"),
        ({"vm_name_template": "{name}"}, "without {id}"),
        ({"vm_name_template": "{id}-{image}"}, "only {name} and {id}"),
        ({"vm_name_template": "{id.x}"}, "only {name} and {id}"),
        ({"vm_name_template": "{id"}, "only {name} and {id}"),
        ({"vm_name_template": "a/{id}"}, "cannot have /"),
        ({"vm_name_template": "x" * 60 + "{id}"}, "too long"),
        ({"serial_listen": "0.0.0.0:0:1"}, "--serial-listen"),
        ({"serial_tls_cert": Path("/c")}, "belong together"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        settings(**options)
    assert words in str(refused.value)


def test_amounts() -> None:
    assert settings().limits == PoolLimits()
    limits = settings(cpu_limit="2.5GHz", cpu_reservation="500", memory_limit="8g", shares="low").limits
    assert limits == PoolLimits(2500, 500, 8 << 30, None, Shares("low"))
    assert settings(cpu_limit="unlimited", memory_limit="unlimited", cpu_reservation="1000MHz").limits == PoolLimits(
        UNLIMITED, 1000, UNLIMITED
    )
    assert settings(shares="8000:327680").limits.shares == Shares("custom", 8000, 327680)


def test_container_networks() -> None:
    said = settings(container_network=["web:VLAN 7 (web)", "lab:/DC0/network/lab:2", "VLAN8"]).container_networks
    assert said == (("web", "VLAN 7 (web)"), ("lab", "/DC0/network/lab:2"), ("VLAN8", "VLAN8"))


def test_the_concentrators_places() -> None:
    assert settings().serial == SerialSettings("0.0.0.0", 2377, None, None)
    assert settings(serial_listen="10.0.0.5:0").serial == SerialSettings("10.0.0.5", 0, None, None)
    told = settings(serial_listen="[::]:3000", serial_address="vch.example.org:13000").serial
    assert told == SerialSettings("::", 3000, "vch.example.org", 13000)


def test_no_password_in_a_representation() -> None:
    assert "secret" not in repr(settings())
