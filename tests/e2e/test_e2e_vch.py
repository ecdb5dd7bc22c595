"""The VCH as its administrator sees it: images, gRPC, a port layer that is killed, an orderly end."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import uuid
from pathlib import Path

import docker as docker_py
import grpc
import pytest
from conftest import BUSYBOX, Docker, Vch, eventually, machines, vm_pid
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from portlayer.v1 import execution_pb2 as ex
from portlayer.v1 import execution_pb2_grpc, interaction_pb2, interaction_pb2_grpc, types_pb2

pytestmark = pytest.mark.vm


def test_docker_py_runs_a_container(client: docker_py.DockerClient) -> None:
    """The one path that needs no docker CLI on the machine."""
    output = client.containers.run("busybox", ["sh", "-c", "echo $0; uname -s", "hello"], remove=True)
    assert output == b"hello\nLinux\n"
    with pytest.raises(docker_py.errors.ContainerError) as raised:
        client.containers.run("busybox", ["sh", "-c", "exit 4"], remove=True)
    assert raised.value.exit_status == 4
    with pytest.raises(docker_py.errors.ImageNotFound):
        client.images.get("nothing")
    assert client.version()["ApiVersion"] == "1.50"
    assert client.info()["Images"] >= 1


def test_images(docker: Docker, tmp_path: Path) -> None:
    docker("tag busybox mine:1")
    docker("save -o", str(tmp_path / "saved.tar"), "mine:1")
    assert "mine:1" in docker("rmi mine:1").out
    assert docker("load -i", str(tmp_path / "saved.tar")).out == "Loaded image: mine:1\n"
    assert docker("inspect -f {{.Id}} mine:1").out == docker("inspect -f {{.Id}} busybox").out
    docker("rmi mine:1")
    rootfs = io.BytesIO()
    with tarfile.open(fileobj=rootfs, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"world"))
    (tmp_path / "rootfs.tar").write_bytes(rootfs.getvalue())
    docker("import --change", 'CMD ["/x"]', str(tmp_path / "rootfs.tar"), "imported:latest")
    assert docker("inspect -f {{.Config.Cmd}} imported").out == "[/x]\n"
    assert "No such image" in docker("rmi nothing", code=1).err
    docker("rmi imported")
    assert "imported" not in docker("images").out
    docker("image prune -f")


def test_a_broken_archive_changes_nothing(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(BUSYBOX.read_bytes()[:100_000])
    before = docker("images -q").out
    assert docker("load -i", str(tmp_path / "broken.tar"), code=1).err
    assert docker("images -q").out == before


def test_the_whole_life_over_grpc_alone(loaded: Vch) -> None:
    with grpc.insecure_channel(loaded.grpc) as channel:
        names = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert {"portlayer.v1.ExecutionService", "portlayer.v1.InteractionService", "grpc.health.v1.Health"} <= names
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service="portlayer.v1.ExecutionService")).status == serving
        execution = execution_pb2_grpc.ExecutionServiceStub(channel)
        interaction = interaction_pb2_grpc.InteractionServiceStub(channel)
        process = types_pb2.ProcessConfig(cmd=["sh", "-c", "echo hi; exit 3"])
        spec = types_pb2.ContainerSpec(image="busybox", process=process)
        request = ex.CreateContainerRequest(request_id=uuid.uuid4().hex, name="by-grpc", spec=spec)
        made = execution.CreateContainer(request).container
        assert execution.CreateContainer(request).container.id == made.id
        waiting = execution.WaitContainer(
            ex.WaitContainerRequest(container=made.id, condition=ex.WaitContainerRequest.CONDITION_NEXT_EXIT)
        )
        assert next(waiting).armed
        started = execution.StartContainer(ex.StartContainerRequest(container="by-grpc")).container
        assert started.state.status == types_pb2.CONTAINER_STATUS_RUNNING
        assert next(waiting).exit_code == 3
        logs = interaction.ReadLogs(interaction_pb2.ReadLogsRequest(container=made.id, stdout=True, stderr=True))
        assert b"".join(one.data for one in logs) == b"hi\n"
        execution.RemoveContainer(ex.RemoveContainerRequest(container=made.id))
        with pytest.raises(grpc.RpcError) as raised:
            execution.GetContainer(ex.GetContainerRequest(container=made.id))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_the_second_vch_on_a_state_directory_says_so(loaded: Vch) -> None:
    done = loaded.run("up", "--detach", check=False)
    assert done.code != 0
    assert "already" in (done.out + done.err)


def test_a_killed_port_layer_loses_nothing(docker: Docker, loaded: Vch) -> None:
    """kill -9 while a container writes and another ends; a new VCH finds both."""
    counting = (
        "until [ -e /told ]; do sleep 0.1; done; "
        "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 11"
    )
    docker("run -d --name lasting busybox sleep 100000")
    docker("run -d --name counting busybox sh -c", counting)
    # Of these two alone: machines of earlier tests may still be on their way out.
    running = {vm_pid(loaded, docker, name) for name in ("counting", "lasting")}
    main, portlayer = loaded.main_pid, loaded.pid("portlayer")
    docker("exec counting touch /told")  # not before, as the rest may take longer than counting does
    os.kill(portlayer, signal.SIGKILL)
    eventually(lambda: not _alive(main))
    assert json.loads(loaded.run("status", "--json", check=False).out)["up"] is False
    assert running <= {process.pid for process in machines(loaded.state)}
    loaded.run("up", "--detach", "--default-memory", "256m")
    assert docker("wait counting").out == "11\n"
    assert docker("logs counting").out.split() == [str(number) for number in range(60)]
    assert docker("exec lasting echo here").out == "here\n"
    assert vm_pid(loaded, docker, "lasting") in running
    docker("rm -f counting lasting")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
