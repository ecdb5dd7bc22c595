"""The lab as a program: `python tests/lab --host HOST --port PORT --user USER`, the password in LAB_PASSWORD.

Runs until it is told to end; then its QEMUs have ended too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "vsphere")]

from lab_dial import dial_as_esxi  # noqa: E402
from lab_esxi import Lab  # noqa: E402
from lab_inventory import Account  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="QEMUs for the VMs that are powered on in vcsim")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8989)
    parser.add_argument("--user", default="user")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="lab: %(message)s")
    asyncio.run(serve(Account(words.host, words.port, words.user, os.environ.get("LAB_PASSWORD", "pass"))))


async def serve(account: Account) -> None:
    serving = asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        async with Lab(account, dial_as_esxi) as lab:
            await lab.serve()
    except asyncio.CancelledError:
        pass


main()
