"""Generates the Python stubs of proto/ into tether/v1 and portlayer/v1. Run by `make` and by the package build."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path = ROOT) -> None:
    """Writes messages, type stubs and (for the port layer) gRPC classes of every .proto file below `out`."""
    from grpc_tools import protoc  # only where stubs are made: the guest has no gRPC

    # protoc looks its plug-ins up in PATH; those of this interpreter's environment come first.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    proto = ROOT / "proto"
    sources = [str(path.relative_to(proto)) for path in sorted(proto.rglob("*.proto"))]
    common = ["protoc", f"--proto_path={proto}", f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    served = [name for name in sources if name.startswith("portlayer/")]
    if protoc.main([*common, *sources]) or protoc.main(
        [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *served]
    ):
        raise SystemExit("protoc failed; see its message above")
    for package in ("tether/v1", "portlayer/v1"):
        (out / package / "__init__.py").touch()


if __name__ == "__main__":
    generate()
