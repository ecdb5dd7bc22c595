"""How a fake part behaves: as VCH_FAKE_<NAME> says; without it, it serves until SIGTERM."""

import os
import signal
import sys
import time

_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}
# Before there are threads, which would take them: those of gRPC have no use for them but to die.
signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def serve(name: str, ready_fd: int) -> None:
    """ "die": ends before it serves; "refuse": too, with a reason; "hang": never serves; "brief": serves, then ends
    when SIGUSR1 comes.
    """
    behaviour = os.environ.get(f"VCH_FAKE_{name.upper()}", "")
    sys.stderr.write(f"{name} starts\n")
    sys.stderr.flush()
    if behaviour == "die":
        sys.stderr.write("no such thing as a guest image\n")
        sys.exit(7)
    if behaviour == "refuse":
        sys.stderr.write("Error: no datastore 'x'\n")
        sys.exit(1)
    if behaviour != "hang":
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
    if signal.sigwait(_SIGNALS) == signal.SIGUSR1:
        sys.stderr.write("out of luck\n")
        sys.stderr.flush()
        os._exit(9)
    sys.stderr.write(f"{name} ends at {time.monotonic_ns()}\n")
