"""Regenerates gRPC code, descriptors and TypeScript types of each .proto, or with --check fails when they are stale.

    python protos/generate.py [--check]

The generator is old on purpose: code made by grpcio-tools 1.76 runs on protobuf 6.31 and 7, newer code
refuses older runtimes. It cannot share an environment with protobuf 7, so it gets one of its own, kept in
.cache/protoc (delete it to start afresh).
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from typescript import types_of

PINS = ("grpcio-tools==1.76.0", "mypy-protobuf==3.7.0", "setuptools<81")
ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT.parent / ".cache" / "protoc"
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.glob("lhydra_protos/**/*.proto"))
# What a proxy needs to turn JSON into calls; with the comments, for OpenAPI.
DESCRIPTORS = SOURCES[0].with_suffix(".binpb")
TYPES = SOURCES[0].with_suffix(".ts")  # what the page of the gateway is checked against
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "*.binpb", "*.ts")


def main() -> int:
    """Returns 0 when the generated code is (now) fresh, 1 when --check finds it stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when stale")
    check = parser.parse_args().check
    if not check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = [path for path in made(Path(scratch)) | made(ROOT) if not same(Path(scratch) / path, ROOT / path)]
    for path in sorted(stale):
        print(f"stale: protos/{path}; run: python protos/generate.py", file=sys.stderr)
    return 1 if stale else 0


def generate(out: Path) -> None:
    """Runs protoc over all sources, writing below `out`."""
    python = _environment()
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    flags += [f"--descriptor_set_out={out / DESCRIPTORS}", "--include_imports", "--include_source_info"]
    search = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(python), "-m", "grpc_tools.protoc", f"-I{ROOT}", *flags, *map(str, SOURCES)]
    subprocess.run(command, check=True, cwd=ROOT, env=search)  # plugins are found through PATH only
    (out / TYPES).write_text(types_of((out / DESCRIPTORS).read_bytes()), encoding="utf-8")


def made(folder: Path) -> set[Path]:
    """The generated files below `folder`, as relative paths."""
    return {path.relative_to(folder) for pattern in GENERATED for path in folder.rglob(pattern)}


def same(a: Path, b: Path) -> bool:
    """Whether both files exist and are equal."""
    return a.exists() and b.exists() and filecmp.cmp(a, b, shallow=False)


def _environment() -> Path:
    """The python of the generator's own environment, made when it is missing or its pins changed."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "pins"
    if not stamp.exists() or stamp.read_text() != "\n".join(PINS):
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text("\n".join(PINS))
    return python


if __name__ == "__main__":
    sys.exit(main())
