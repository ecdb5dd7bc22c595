"""Networks: what there is, what containers get, and what the API tells of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from portlayer.errors import InvalidArgumentError, NotFoundError
from portlayer.networks import Networks, cards
from portlayer.services.network import NetworkServicer
from portlayer.v1 import network_pb2, network_pb2_grpc

if TYPE_CHECKING:
    from conftest import Host

PORT_GROUPS = {"bridge": "port group /DC0/network/vch", "web": "port group /DC0/network/VLAN 7"}


@pytest.fixture
def networks() -> Networks:
    return Networks("vch", "vsphere", PORT_GROUPS)


def test_ids_stay_and_belong_to_the_vch(networks: Networks) -> None:
    again = Networks("vch", "vsphere", {"new": "", **PORT_GROUPS})
    other = Networks("other", "vsphere", PORT_GROUPS)
    for network in networks.all():
        assert len(bytes.fromhex(network.id)) == 32
        assert again.find(network.name) == network
        assert other.find(network.name).id != network.id
    kinds = [(network.name, network.driver) for network in networks.all()]
    assert kinds == [("none", "null"), ("bridge", "bridge"), ("web", "vsphere")]


def test_they_are_found_by_name_id_and_its_beginning(networks: Networks) -> None:
    for network in networks.all():
        for reference in (network.name, network.id, network.id[:12]):
            assert networks.find(reference) is network
    for reference in ("", "nowhere", "WEB"):
        with pytest.raises(NotFoundError, match="there are none, bridge, web"):
            networks.find(reference)
    many = Networks("vch", "vsphere", {f"n{number}": "" for number in range(17)})  # two of 18 begin with the same digit
    digits = [network.id[0] for network in many.all()]
    with pytest.raises(InvalidArgumentError, match="multiple networks"):
        many.find(max(digits, key=digits.count))


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [([], ["bridge"]), (["none"], ["none"]), (["web", "bridge"], ["web", "bridge"]), (["web", "web"], ["web"])],
)
def test_what_a_container_gets(networks: Networks, asked: list[str], chosen: list[str]) -> None:
    found = networks.choose(asked)
    assert [network.name for network in found] == chosen
    assert networks.choose([network.id for network in found]) == found
    assert cards(found) == tuple(name for name in chosen if name != "none")


def test_without_a_bridge_network_it_gets_loopback() -> None:
    [network] = Networks("vch", "qemu", {}).choose([])
    assert network.name == "none"


def test_what_a_container_cannot_get(networks: Networks) -> None:
    with pytest.raises(NotFoundError, match="network lab not found"):
        networks.choose(["web", "lab"])
    with pytest.raises(InvalidArgumentError, match="none cannot be on others"):
        networks.choose(["web", "none"])
    many = Networks("vch", "vsphere", {f"n{number}": "" for number in range(11)})
    assert len(many.choose([f"n{number}" for number in range(10)])) == 10
    with pytest.raises(InvalidArgumentError, match="room for 10 network cards, not for 11"):
        many.choose([f"n{number}" for number in range(11)])


async def test_machine_and_record_know_the_networks(host: Host) -> None:
    host.driver.networks = dict(PORT_GROUPS)
    await host.restart()
    networks = host.manager._networks
    by_default = await host.create("x")
    alone = await host.create("x", networks=["none"])
    both = await host.create("x", networks=[networks.find("web").id, "bridge"])
    with pytest.raises(NotFoundError):
        await host.create("x", networks=["lab"])
    expected = {by_default.id: ["bridge"], alone.id: ["none"], both.id: ["web", "bridge"]}
    for manager in (host.manager, await host.restart()):  # the second reads them from the records
        for container_id, names in expected.items():
            described = manager.get(container_id).record.container
            assert list(described.spec.networks) == names
            pairs = [(one.network, one.network_id) for one in described.endpoints]
            assert pairs == [(name, networks.find(name).id) for name in names]
            machine = host.driver.machines[container_id]
            assert machine.spec.networks == tuple(name for name in names if name != "none")
    assert len(host.driver.machines) == 3


@pytest.fixture
async def stub(tmp_path: Path, networks: Networks) -> AsyncIterator[network_pb2_grpc.NetworkServiceStub]:
    server = grpc.aio.server()
    network_pb2_grpc.add_NetworkServiceServicer_to_server(NetworkServicer(networks, 7), server)
    server.add_insecure_port(f"unix://{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix://{tmp_path}/s") as channel:
        yield network_pb2_grpc.NetworkServiceStub(channel)
    await server.stop(0)


async def test_the_service(stub: network_pb2_grpc.NetworkServiceStub, networks: Networks) -> None:
    listed = (await stub.ListNetworks(network_pb2.ListNetworksRequest())).networks
    assert [(one.name, one.driver, one.description, one.created_unix_ns) for one in listed] == [
        ("none", "null", "", 7),
        ("bridge", "bridge", "port group /DC0/network/vch", 7),
        ("web", "vsphere", "port group /DC0/network/VLAN 7", 7),
    ]
    for one in listed:
        got = await stub.GetNetwork(network_pb2.GetNetworkRequest(network=one.id[:20]))
        assert got.network == one
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetNetwork(network_pb2.GetNetworkRequest(network="lab"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
