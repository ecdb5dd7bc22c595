"""How containers end: everything collected, everything handed over, nobody holding it up."""

from __future__ import annotations

import asyncio

import pytest
from tether_host import PATIENCE_S, Agent, MakeAgent, RawHost, Taken, spec, start_request, take, wait_for

from portlayer.agent import AgentClient
from tether.v1 import tether_pb2 as pb


async def _states(client: AgentClient) -> list[str]:
    return [process.state for process in (await client.processes()).processes]


async def test_orphans_do_not_stay_as_zombies(agent: Agent) -> None:
    """What a process of an exec leaves behind is init's; with a small init it is collected."""
    script = "trap 'exit 0' TERM; while :; do sleep 0.05 & wait $!; done"
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", script)))
        for number in range(5):
            process = spec("sh", "-c", "(sleep 0.01 &) ; (true &)")
            await client.exec(pb.ExecRequest(process_id=f"e{number}", process=process))
            await take(client.follow(f"e{number}", 0), record=True)
        while "Z" in await _states(client):
            pass
        await client.stop(pb.StopRequest())
        assert (await take(client.follow("init", 0), record=True)).exited.exit_code == 0
        assert await agent.ended() == 0


async def test_children_in_the_background_do_not_outlive_init(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "sleep 1000 & echo parent; exit 2")))
        taken = await take(client.follow("init", 0), record=True)
        assert (taken.stdout, taken.exited.exit_code) == (b"parent\n", 2)
        assert await agent.ended() == 0


@pytest.mark.slow
async def test_child_that_keeps_an_execs_output_open_does_not_hold_up_its_end(agent: Agent) -> None:
    """The process's own output is whole all the same, though the agent's journal was full when it ended."""
    script = "head -c 1300000 /dev/zero; (while :; do echo late; sleep 0.2; done) & echo last; exit 3"
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sh", "-c", script)))
        taken = await take(client.follow("e", 0), record=True)
        assert taken.exited.exit_code == 3
        assert taken.stdout.startswith(bytes(1_300_000))
        assert b"last\n" in taken.stdout
        assert taken.stdout.count(b"late\n") < 100


@pytest.mark.slow
async def test_the_same_with_a_terminal(agent: Agent) -> None:
    script = "trap '' HUP; (trap '' HUP; exec sleep 1000) & echo last; exit 3"
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sh", "-c", script, terminal=True)))
        taken = await take(client.follow("e", 0), record=True)
        assert (taken.stdout, taken.exited.exit_code) == (b"last\r\n", 3)


async def test_output_of_execs_is_handed_over_before_the_power_goes(make_agent: MakeAgent) -> None:
    """The host asks for it together with recording init's exit, and then is slow to read."""
    agent = make_agent(hand_over_s=PATIENCE_S)
    with RawHost(agent.path) as host:
        script = "while [ ! -e /written ]; do sleep 0.05; done; exit 4"
        host.call("Start", start_request(spec("sh", "-c", script)))
        process = spec("sh", "-c", "head -c 900000 /dev/zero; echo > /written; exec sleep 1000")
        host.call("Exec", pb.ExecRequest(process_id="e", process=process))
        init, taken = host.follow("init"), Taken()
        while not host.take(init, taken):
            pass
        assert taken.exited.exit_code == 4
        other, taken = host.follow("e"), Taken()
        host.session.send_data(init, pb.FollowRequest(exit_recorded=True).SerializeToString(), end=True)
        host.socket.sendall(host.session.data_to_send())
        await asyncio.sleep(0.5)
        while not host.take(other, taken):
            pass
        assert (len(taken.stdout), taken.exited.exit_code) == (900_000, 137)
        host.session.send_data(
            other, pb.FollowRequest(offset=900_000, exit_recorded=True).SerializeToString(), end=True
        )
        host.answer(other)
        assert await agent.ended() == 0


@pytest.mark.slow
async def test_an_exec_nobody_records_does_not_keep_the_power_on(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "read line", stdin=True)))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sh", "-c", "echo x; exec sleep 1000")))
        follow = client.follow("e", 0)
        await wait_for(follow, b"x\n")
        await client.write_input(pb.WriteInputRequest(process_id="init", close=True))
        await take(client.follow("init", 0), record=True)
        assert await agent.ended() == 0


async def test_power_off_kills_what_runs(agent: Agent) -> None:
    """Process 1 and an exec that ignore every request; the agent asserts that their disks could be unmounted."""
    async with agent.connect() as client:
        await client.start(start_request(spec("sh", "-c", "trap '' TERM HUP INT; echo ready; sleep 1000")))
        await client.exec(pb.ExecRequest(process_id="e", process=spec("sleep", "1000")))
        await wait_for(client.follow("init", 0), b"ready\n")
        await client.power_off()
        assert await agent.ended() == 0


async def test_power_off_before_anything_was_started(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.power_off()
        assert await agent.ended() == 0


async def test_exits_of_killed_programs(agent: Agent) -> None:
    async with agent.connect() as client:
        await client.start(start_request(spec("sleep", "1000")))
        for number, signal in enumerate((1, 6, 9, 11, 15, 34)):
            process = spec("sh", "-c", f"kill -{signal} $$; sleep 1000")
            await client.exec(pb.ExecRequest(process_id=f"e{number}", process=process))
            exited = (await take(client.follow(f"e{number}", 0))).exited
            assert (exited.exit_code, exited.signal, exited.oom_killed) == (128 + signal, signal, False)
