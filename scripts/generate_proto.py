#!/usr/bin/env python3
"""Make comfy_cluster/wire/messages_pb2.py and .pyi from proto/messages.proto.

Run it with a Python that has grpcio-tools 1.62 (protoc 25): what that one generates is imported by
protobuf 4.25 and by every newer runtime, while newer compilers write modules that refuse older
runtimes. `--check` writes nothing and fails when the committed files differ.

    python -m venv /tmp/protoc && /tmp/protoc/bin/pip install "grpcio-tools==1.62.*" "setuptools<80"
    /tmp/protoc/bin/python scripts/generate_proto.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "proto" / "messages.proto"
# The name under which the schema is registered in the process-wide descriptor pool. ComfyUI loads
# many packages into one process, and a second "messages.proto" in the pool is an import error.
REGISTERED = Path("comfy_cluster/wire/messages.proto")
GENERATED = ("messages_pb2.py", "messages_pb2.pyi")
REQUIRED_COMPILER = "libprotoc 25."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = compile_schema(Path(scratch))
        if arguments.check:
            return compare(made)
        for name in GENERATED:
            shutil.copyfile(made / name, ROOT / REGISTERED.parent / name)
    return 0


def compile_schema(scratch: Path) -> Path:
    """Compile in `scratch`; return the folder that holds the generated files."""
    source = scratch / REGISTERED
    source.parent.mkdir(parents=True)
    shutil.copyfile(SCHEMA, source)
    protoc = [sys.executable, "-m", "grpc_tools.protoc"]
    version = subprocess.run([*protoc, "--version"], check=True, capture_output=True, text=True)
    if not version.stdout.startswith(REQUIRED_COMPILER):
        sys.exit(f"this needs {REQUIRED_COMPILER}x, not {version.stdout.strip()}: see --help")
    options = [f"-I{scratch}", f"--python_out={scratch}", f"--pyi_out={scratch}"]
    subprocess.run([*protoc, *options, str(REGISTERED)], check=True, cwd=scratch)
    return source.parent


def compare(made: Path) -> int:
    """Return 1 and name the files where the committed ones differ from those in `made`."""
    stale = [
        name
        for name in GENERATED
        if (made / name).read_bytes() != (ROOT / REGISTERED.parent / name).read_bytes()
    ]
    for name in stale:
        print(f"{REGISTERED.parent / name} does not match {SCHEMA.relative_to(ROOT)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
