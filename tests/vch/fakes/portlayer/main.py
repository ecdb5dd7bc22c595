"""A port layer that serves two calls and keeps its containers as empty files in STATE/machines."""

import argparse
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
    options, _ = parser.parse_known_args()
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
