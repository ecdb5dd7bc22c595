"""What a container finds around it: mounts, users, privileges; with images that mean ill."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tether_host import Agent, MakeAgent, Taken, spec, start_request, take

from tether.v1 import tether_pb2 as pb

PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n"


async def _run(agent: Agent, process: pb.ProcessSpec, **fields: object) -> Taken:
    async with agent.connect() as client:
        answer = await client.start(start_request(process, **fields))
        assert not answer.HasField("failure"), answer
        return await take(client.follow("init", 0))


def _shell(script: str, **fields: object) -> pb.ProcessSpec:
    return spec("sh", "-c", script, **fields)


@pytest.mark.parametrize(
    "where",
    [
        "/run/elsewhere/resolv.conf",
        "../run/elsewhere/resolv.conf",
        "../../../../../../../run/elsewhere/resolv.conf",
        "/proc/1/root/run/elsewhere/resolv.conf",
        "/proc/self/cwd/run/elsewhere/resolv.conf",
    ],
)
async def test_etc_files_behind_links_are_made_inside_the_root(make_agent: MakeAgent, where: str) -> None:
    """Dangling ones too, as images of whole distributions have them."""
    agent = make_agent({name: {"link": where} for name in ("etc/resolv.conf", "etc/hosts", "etc/hostname")})
    # All three are one file then, and the last one mounted is seen.
    taken = await _run(agent, _shell("cat /etc/resolv.conf"), resolv_conf=["nameserver 192.0.2.1"])
    assert taken.stdout == b"nameserver 192.0.2.1\n"
    assert not Path("/run/elsewhere").exists()


@pytest.mark.parametrize("number", range(3, 16))
async def test_links_to_the_agents_descriptors_lead_nowhere(make_agent: MakeAgent, number: int) -> None:
    """Whatever the child has open when it looks at the image: nothing of the agent's file system is reached by it."""
    link = {"link": f"/proc/self/fd/{number}/tmp/reached"}
    agent = make_agent({"etc/hosts": link, "scratch": link, "work": link})
    async with agent.connect() as client:
        tmpfs = [pb.Tmpfs(target="/scratch")]
        answer = await client.start(start_request(_shell("ls /tmp", working_dir="/work"), tmpfs=tmpfs))
        if not answer.HasField("failure"):
            assert b"reached" not in (await take(client.follow("init", 0))).stdout
    assert not Path("/tmp/reached").exists()


async def test_tmpfs_behind_a_link_is_inside_the_root(make_agent: MakeAgent) -> None:
    agent = make_agent({"scratch": {"link": "../../../srv/deep/scratch"}})
    taken = await _run(agent, _shell("stat -f -c %T /srv/deep/scratch"), tmpfs=[pb.Tmpfs(target="/scratch")])
    assert taken.stdout == b"tmpfs\n"
    assert not Path("/srv/deep").exists()


async def test_tmpfs_options_order_and_modes(make_agent: MakeAgent) -> None:
    agent = make_agent({"closed/x": None})
    tmpfs = [
        pb.Tmpfs(target="/a/b", options="size=1m"),
        pb.Tmpfs(target="/a", options="mode=700,exec"),
        pb.Tmpfs(target="/etc"),
        pb.Tmpfs(target="/closed"),
    ]
    script = (
        "stat -c %a /a /a/b /closed; grep ' /a' /proc/self/mounts | cut -d' ' -f 2,4; cat /etc/hostname; ls /closed"
    )
    taken = await _run(agent, _shell(script), tmpfs=tmpfs)
    first, second, third, a, b, host = taken.stdout.decode().splitlines()
    assert (first, second, third, host) == ("700", "1777", "755", "box")
    assert a.split()[0] == "/a"
    assert "noexec" not in a
    assert b.split()[0] == "/a/b"
    assert "size=1024k" in b
    assert "noexec" in b


async def test_impossible_tmpfs_is_a_launch_failure(agent: Agent) -> None:
    async with agent.connect() as client:
        tmpfs = [pb.Tmpfs(target="/x", options="size=much")]
        answer = await client.start(start_request(_shell("true"), tmpfs=tmpfs))
        assert answer.failure.step == pb.LaunchFailure.STEP_SETUP
        assert answer.failure.errno


async def test_working_directory_is_made_even_behind_a_dangling_link(make_agent: MakeAgent) -> None:
    agent = make_agent({"work": {"link": "/data/deep/work"}})
    taken = await _run(agent, _shell("pwd -P; stat -c %u .", working_dir="/work"), read_only_root=True)
    assert taken.stdout == b"/data/deep/work\n0\n"


async def test_root_can_be_read_only(agent: Agent) -> None:
    script = "echo > /x || echo > /dev/shm/x && echo > /tmp/x && echo >> /etc/hosts && echo done"
    taken = await _run(agent, _shell(script), read_only_root=True, tmpfs=[pb.Tmpfs(target="/tmp")])
    assert taken.stdout == b"done\n"
    assert b"Read-only" in taken.stderr


async def test_kernel_files_are_hidden_and_protected(agent: Agent) -> None:
    script = "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname"
    taken = await _run(agent, _shell(script))
    assert taken.stdout == b"0\n0\n"
    assert b"Read-only" in taken.stderr


async def test_privileged_is_not_hidden_from(agent: Agent) -> None:
    script = "echo other > /proc/sys/kernel/hostname && hostname; cat /proc/timer_list | head -1 | wc -l"
    assert (await _run(agent, _shell(script), privileged=True)).stdout == b"other\n1\n"


async def test_users_and_groups_of_the_image(make_agent: MakeAgent) -> None:
    hostile = "9" * 5000
    agent = make_agent(
        {
            "etc/passwd": f"x:x:{hostile}:0::/:/bin/sh\n:::::::\n\n" + PASSWD,
            "etc/group": f"y:x:{hostile}:web\nwww:x:33:\nlogs:x:50:a,web\n",
        }
    )
    process = _shell("id -u; id -g; id -G; echo $HOME", user="web", additional_groups=["77"])
    assert (await _run(agent, process)).stdout == b"33\n33\n33 50 77\n/srv\n"


async def test_passwd_that_is_a_pipe_or_leads_out_is_not_waited_for(make_agent: MakeAgent) -> None:
    agent = make_agent({"etc/passwd": {"link": "/proc/self/fd/0"}, "etc/group": {"link": "/dev/zero"}})
    assert (await _run(agent, _shell("id -u", user="5:6", stdin=True))).stdout == b"5\n"


async def test_privileges_are_what_was_asked_for(agent: Agent) -> None:
    script = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj; umask"
    limits = [pb.Rlimit(name="nofile", soft=100, hard=200), pb.Rlimit(name="locks", soft=-1, hard=-1)]
    process = _shell(script, user="33", no_new_privileges=True, oom_score_adj=77, rlimits=limits)
    lines = (await _run(agent, process)).stdout.decode().split("\n")
    assert [line.split()[1] for line in lines[:5]] == ["0" * 16, "0" * 16, "0" * 16, "00000000a80425fb", "0" * 16]
    assert lines[5:9] == ["NoNewPrivs:\t1", "100", "77", "0022"]


async def test_nothing_of_the_agent_is_inherited(agent: Agent) -> None:
    """Neither descriptors nor signal masks nor environment; not by an exec either."""
    script = "ls /proc/self/fd; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; env | sort | grep -v ^PWD"
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("env", "-i", "sh", "-c", script)))
        lines = (await take(client.follow("e", 0))).stdout.decode().splitlines()
        assert lines[:4] == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
        # Less 32 and 33: the C library keeps them to itself, and lets nobody change whether they are ignored.
        masks = [int(line.split()[1], 16) & ~(0b11 << 31) for line in lines[4:6]]
        assert masks == [0, 0], lines
        await client.exec(pb.ExecRequest(process_id="env", process=spec("env")))
        names = {line.split(b"=")[0] for line in (await take(client.follow("env", 0))).stdout.splitlines()}
        assert names == {b"PATH", b"HOSTNAME", b"HOME"}


async def test_an_exec_cannot_be_reached_into_before_it_is_the_program(agent: Agent) -> None:
    """While the child still has the agent's descriptors, not even the container's root may look at them."""
    watch = (
        "import os\n"
        "print('ready', flush=True)\n"
        "seen = set()\n"
        "while not os.path.exists('/enough'):\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        try:\n"
        "            seen |= {os.readlink(f'/proc/{pid}/fd/{fd}') for fd in os.listdir(f'/proc/{pid}/fd')}\n"
        "        except OSError:\n"
        "            pass\n"
        "print(sorted(name for name in seen if 'eventpoll' in name))\n"
    )
    async with agent.connect() as client:
        await client.start(start_request(spec(os.path.realpath(sys.executable), "-c", watch)))
        for number in range(40):
            await client.exec(pb.ExecRequest(process_id=f"e{number}", process=spec("true")))
        await client.exec(pb.ExecRequest(process_id="enough", process=spec("touch", "/enough")))
        assert (await take(client.follow("init", 0))).stdout == b"ready\n[]\n"


async def test_names_hosts_and_sysctls(agent: Agent) -> None:
    fields = {"domainname": "example.org", "extra_hosts": ["192.0.2.7 other"], "sysctls": {"net.core.somaxconn": "77"}}
    script = "hostname; domainname; cat /etc/hosts /etc/hostname; cat /proc/sys/net/core/somaxconn"
    lines = (await _run(agent, _shell(script), **fields)).stdout.decode().splitlines()
    assert lines[:2] == ["box", "example.org"]
    assert lines[2:] == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "127.0.1.1\tbox.example.org box",
        "192.0.2.7\tother",
        "box",
        "77",
    ]
