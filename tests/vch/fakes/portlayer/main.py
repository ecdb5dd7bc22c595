"""A port layer that serves a few calls and keeps its containers as empty files in STATE/machines."""

import argparse
import os
from concurrent import futures
from pathlib import Path

import fake_part
import grpc

from portlayer.v1 import execution_pb2, execution_pb2_grpc, system_pb2, system_pb2_grpc


class _System(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, machines: Path) -> None:
        self._machines = machines

    def GetInfo(self, request: object, context: object) -> system_pb2.GetInfoResponse:
        running = len(list(self._machines.iterdir()))
        return system_pb2.GetInfoResponse(containers=running, containers_running=running, images=1, driver="fake")

    def ListTemplates(self, request: object, context: object) -> system_pb2.ListTemplatesResponse:
        ready = system_pb2.Template(
            id="ab" * 32,
            state=system_pb2.Template.STATE_READY,
            memory_bytes=1 << 30,
            cpus=1,
            disk_bytes=270 << 20,
            resident_bytes=120 << 20,
            created_unix_ns=1_700_000_000_000_000_000,
            made_in_ns=6_250_000_000,
            clones=3,
            pooled=2,
            uses=9,
        )
        state = system_pb2.Template.STATE_FAILED
        failed = system_pb2.Template(state=state, memory_bytes=512 << 20, cpus=2, error="no space left")
        waiting = system_pb2.Template(state=system_pb2.Template.STATE_WAITING, memory_bytes=2 << 30, cpus=1)
        return system_pb2.ListTemplatesResponse(templates=[ready, failed, waiting])

    def Dismantle(self, request: object, context: object) -> system_pb2.DismantleResponse:
        left = len(list(self._machines.iterdir()))
        return system_pb2.DismantleResponse(stays=[f"the VM folder red: {left} containers"])


class _Execution(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, machines: Path) -> None:
        self._machines = machines

    def ListContainers(self, request: object, context: object) -> execution_pb2.ListContainersResponse:
        answer = execution_pb2.ListContainersResponse()
        for path in self._machines.iterdir():
            answer.containers.add(id=path.name, name=path.name)
        return answer

    def RemoveContainer(
        self, request: execution_pb2.RemoveContainerRequest, context: grpc.ServicerContext
    ) -> execution_pb2.RemoveContainerResponse:
        if request.container.startswith("stuck"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the machine does not end")
        (self._machines / request.container).unlink()
        return execution_pb2.RemoveContainerResponse()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--grpc")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--password-fd", type=int)
    options, _ = parser.parse_known_args()
    if options.password_fd is not None:
        with os.fdopen(options.password_fd) as pipe:
            (options.state_dir / "password-told").write_text(pipe.read())
    machines = options.state_dir / "machines"
    machines.mkdir(exist_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    system_pb2_grpc.add_SystemServiceServicer_to_server(_System(machines), server)
    execution_pb2_grpc.add_ExecutionServiceServicer_to_server(_Execution(machines), server)
    server.add_insecure_port(options.grpc.replace("unix://", "unix:"))
    server.start()
    fake_part.serve("portlayer", options.ready_fd)
    server.stop(None)


main()
