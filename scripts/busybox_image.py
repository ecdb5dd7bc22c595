#!/usr/bin/env python3
"""Makes a small real image, busybox:latest, from Debian's or Ubuntu's busybox-static package.

The same package gives the same bytes. Needs no privileges; the package is kept beside the archive.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from image_archive import Format, Image, Layer, write

_ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(_ROOT / "photon-image"))

from errors import BuildError  # noqa: E402
from sources import AptSource  # noqa: E402

DEFAULT_OUTPUT = _ROOT / "build" / "images" / "busybox.tar"
TAG = "busybox:latest"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DIRECTORIES = ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/spool")
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:daemon,operator
tty:x:5:
disk:x:6:
mail:x:8:www-data
www-data:x:33:
operator:x:37:
staff:x:50:operator
users:x:100:
nogroup:x:65534:
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--format", type=Format, choices=list(Format), default=Format.BOTH)
    options = parser.parse_args()
    try:
        build(options.output, options.format)
    except BuildError as error:
        sys.stderr.write(f"busybox image: {error}\n")
        return 1
    return 0


def ensure(output: Path = DEFAULT_OUTPUT) -> Path:
    """The archive, made when it is not there yet."""
    if not output.exists():
        build(output)
    return output


def build(output: Path, layout: Format = Format.BOTH) -> None:
    """Makes the archive. Raises BuildError when the package cannot be had."""
    with tempfile.TemporaryDirectory() as scratch:
        source = AptSource(_ROOT / "build" / "images" / "packages")
        source.unpack(source.resolve(["busybox-static"]), Path(scratch))
        program = Path(scratch, "bin", "busybox")
        if not program.exists():
            program = Path(scratch, "usr", "bin", "busybox")
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        layer = _layer(program.read_bytes(), applets)
    write(Image(TAG, (layer,), {"Cmd": ["sh"], "Env": [_PATH]}), output, layout)


def _layer(program: bytes, applets: list[str]) -> bytes:
    layer = Layer()
    for path in _DIRECTORIES:
        layer.directory(path)
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.directory("var/spool/mail", 0o755, uid=8, gid=8)
    layer.directory("var/www", 0o755, uid=33, gid=33)
    layer.file("etc/passwd", _PASSWD.encode())
    layer.file("etc/group", _GROUP.encode())
    layer.file("etc/shadow", b"root:*:::::::\n", 0o600)
    layer.file("bin/busybox", program, 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        layer.hard_link(f"bin/{applet}", "bin/busybox")
    layer.symbolic_link("usr/bin/env", "../../bin/env")
    return layer.finish()


if __name__ == "__main__":
    sys.exit(main())
