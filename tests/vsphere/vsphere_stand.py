"""A vSphere of a benchmark's own, as a program: the simulator and stand-ins for all guests, without shims.

    .venv/bin/python tests/vsphere/vsphere_stand.py DIRECTORY

Says on its standard output, as one line of JSON, what somebody needs who wants to use it, and ends with its standard
input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS.parent), str(_TESTS / "portlayer")]

from vsphere_guests import Guests  # noqa: E402
from vsphere_machines import guest_image  # noqa: E402
from vsphere_simulator import Simulator  # noqa: E402


def main(directory: Path) -> None:
    simulator = Simulator(directory)
    try:
        password = directory / "password"
        password.write_text(simulator.password)
        told = {
            "target": f"{simulator.user}@127.0.0.1:{simulator.port}",
            "thumbprint": simulator.thumbprint,
            "password_file": str(password),
            "guest_image": str(guest_image(directory / "guest")),
            "datastore": "LocalDS_0",
            "bridge_network": "VM Network",
            "simulator_pid": simulator.pid,
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        with simulator.connected() as instance:
            asyncio.run(_serve(Guests(instance.RetrieveContent())))
    finally:
        simulator.close()


async def _serve(guests: Guests) -> None:
    serving = asyncio.create_task(guests.serve())
    end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({serving, end}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    if not end.done():
        raise SystemExit(f"the guests ended: {serving}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
