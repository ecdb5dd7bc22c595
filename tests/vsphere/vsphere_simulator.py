"""VMware's simulator (vcsim) as a process of the test's own, with what a test needs to know of it.

Its inventory: datacentre `DC0`, cluster `DC0_C0` with hosts `DC0_C0_H0` and `DC0_C0_H1`, datastores `LocalDS_0` and
`LocalDS_1`, the standard port group `VM Network`, the distributed switch `DVS0` with port groups `DC0_DVPG0` and
`DC0_DVPG1`, and no virtual machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme
from pyVim.connect import SmartStubAdapter
from pyVmomi import vim

PROGRAM = Path(__file__).parents[2] / "build" / "tools" / "bin" / "vcsim"
HOST = "127.0.0.1"
_END_S = 10.0


class Certificate:
    """A certificate for this machine by a CA of its own, in files below a directory."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert(HOST, "localhost")
        self.ca_pem = directory / "ca.pem"
        self.certificate, self.key = directory / "certificate.pem", directory / "key.pem"
        self.authority.cert_pem.write_to_path(self.ca_pem)
        issued.private_key_pem.write_to_path(self.key)
        # The certificate itself comes first in the file.
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        self.thumbprint = ":".join(f"{byte:02X}" for byte in hashlib.sha256(der).digest())

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_pem))

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Simulator:
    """A running vcsim. Its state lives as long as its process: `restart` gives an empty inventory, at the same port."""

    user = "vch@vsphere.local"
    administrator = "administrator@vsphere.local"
    password = "a password of tests"

    def __init__(self, directory: Path, *options: str) -> None:
        """`options` of the program, such as `-host 4`, beyond the inventory above."""
        self._directory = directory
        self._options = options
        self._files = directory / "files"
        self._files.mkdir()
        self._log = directory / "vcsim.log"
        self.certificate = Certificate(directory)
        self.port = 0
        self._start()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/sdk"

    @property
    def ca_pem(self) -> Path:
        return self.certificate.ca_pem

    @property
    def thumbprint(self) -> str:
        return self.certificate.thumbprint

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def datastore_dir(self, name: str = "LocalDS_0") -> Path:
        """Where the files of `[name]` are on this machine."""
        return self._datastores[name]

    @contextlib.contextmanager
    def connected(self, user: str = user) -> Iterator[vim.ServiceInstance]:
        """A session of pyvmomi with the simulator itself, past any front."""
        with session(self.port, self.certificate, user, self.password) as instance:
            yield instance

    def kill(self) -> None:
        """As a crash does: nothing of its inventory survives."""
        self._process.kill()
        self._reap()

    def restart(self) -> None:
        """As new, at the same port."""
        self.close()
        self._start()

    def close(self) -> None:
        """Ends it. What it made on disk goes with it."""
        if self.running:
            stdin = self._process.stdin
            assert stdin is not None
            stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _start(self) -> None:
        if not PROGRAM.exists():
            raise FileNotFoundError(f"there is no {PROGRAM}: run scripts/test_tools.py")
        certificate = self.certificate
        command: list[Any] = [PROGRAM, "-l", f"{HOST}:{self.port}", "-username", self.user, "-password", self.password]
        command += ["-cert", certificate.certificate, "-key", certificate.key, *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={"TMPDIR": str(self._files)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready:
            self._reap()
            raise RuntimeError(f"vcsim did not start: {self._log.read_text()}")
        told = json.loads(ready)
        self.port = urlsplit(told["url"]).port or 443
        self._datastores = {name: Path(where) for name, where in told["datastores"].items()}

    def _reap(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        for left in self._files.iterdir():
            shutil.rmtree(left)


@contextlib.contextmanager
def session(port: int, certificate: Certificate, user: str, password: str) -> Iterator[vim.ServiceInstance]:
    """A session of plain pyvmomi at the port."""
    stub = SmartStubAdapter(host=HOST, port=port, sslContext=certificate.client_context())
    instance = vim.ServiceInstance("ServiceInstance", stub)
    try:
        manager = instance.RetrieveContent().sessionManager
        manager.Login(user, password)
        yield instance
        with contextlib.suppress(OSError, vim.fault.NotAuthenticated):
            manager.Logout()
    finally:
        stub.DropConnections()
