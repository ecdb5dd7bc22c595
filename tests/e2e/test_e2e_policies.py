"""What a VCH does with containers of its own accord: restart policies and health checks."""

from __future__ import annotations

import pytest
from conftest import Docker, eventually

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("forget")]


def test_a_failing_container_is_started_again_and_its_health_is_watched(docker: Docker) -> None:
    script = 'trap "exit 7" USR1; echo up; while :; do sleep 0.1; done'
    docker(
        "run -d --name keeper --restart on-failure:1 --health-interval 300ms --health-retries 1 --health-cmd",
        *("test -e /well", "busybox", "sh", "-c", script),
    )

    def state(format_: str) -> str:
        return docker("inspect keeper -f", format_).out.strip()

    def listed() -> str:
        return docker("ps -a --filter name=keeper --format", "{{.Status}}").out.strip()

    eventually(lambda: docker("logs keeper").out == "up\n")  # it heeds signals
    eventually(lambda: "(unhealthy)" in listed())
    docker("exec keeper touch /well")
    eventually(lambda: "(healthy)" in listed())
    assert docker("ps -q --filter health=healthy --filter name=keeper").out

    docker("kill -s USR1 keeper")
    eventually(lambda: state("{{.RestartCount}} {{.State.Status}}") == "1 running")
    eventually(lambda: state("{{.State.Health.Status}}") == "healthy")  # the file has stayed
    eventually(lambda: docker("logs keeper").out == "up\nup\n")
    docker("kill -s USR1 keeper")
    eventually(lambda: listed().startswith("Exited (7)"))

    docker("update --restart always keeper")
    docker("start keeper")
    docker("kill keeper")
    assert listed().startswith("Exited (137)")  # somebody wanted its end
    assert state("{{.HostConfig.RestartPolicy.Name}} {{.RestartCount}}") == "always 0"
