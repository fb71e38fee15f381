"""What a wheel holds, what importing the parts costs, and who may import whom."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def built(tmp_path: Path, compiler: str) -> "subprocess.CompletedProcess[str]":
    """Builds a wheel of a copy of this checkout into `tmp_path`: the module in the checkout stays as it was.

    What is compiled there is an empty module of the same name: to compile ours takes half a minute, which installing
    Lhydra does, and changes no name in a wheel.
    """
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv*", ".cache", ".*_cache", ".hypothesis", "node_modules", "demo")
    shutil.copytree(ROOT, source, ignore=ignored)
    for old in (source / "lhydra/kernels").glob("compiled.*.so"):
        old.unlink()
    (source / "lhydra/kernels/compiled.pyx").write_text("")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"CC": compiler})


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    built(tmp_path, "cc")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"lhydra", "lhydra_protos", "lhydra_index_builder", "lhydra_server", "lhydra_client"}
    assert {f"{package}/py.typed" for package in packages} <= names
    assert "lhydra_protos/v1/recommender.proto" in names
    assert {f"lhydra/page/{name}" for name in ("page.html", "blocks.html", "page.css", "page.js")} <= names
    assert not [name for name in names if "__pycache__" in name]
    machine_code = [name for name in names if name.endswith(".so")]
    assert not [name for name in names if name.endswith((".pyx", ".pxi"))]
    assert len(machine_code) == (shutil.which("cc") is not None), "lhydra.kernels"
    assert wheel.name.endswith("-none-any.whl") != bool(machine_code)


def test_without_a_c_compiler_the_wheel_is_made_all_the_same(tmp_path: Path) -> None:
    ran = built(tmp_path, "/nowhere/cc")
    assert "lhydra.kernels is not compiled" in ran.stdout + ran.stderr
    assert [path.name for path in tmp_path.glob("*.whl")] == ["lhydra-0.1.0-py3-none-any.whl"]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lhydra_client.aio", r"numpy|torch|faiss|onnxruntime|rich|yaml|pandas|lhydra|lhydra_server"),
        ("lhydra_server.worker", r"torch|pandas|pyarrow|duckdb|rich|lhydra\.(data|training|evaluation)"),
        ("lhydra_server.app", r"torch|pandas|pyarrow|duckdb|rich|lhydra\.(data|training|evaluation)"),
        ("lhydra_server.supervisor", r"numpy|torch|faiss|onnxruntime|grpc|google|lmdb|pandas|pyarrow|duckdb|rich"),
        ("lhydra.users.environment", r"numpy|torch|faiss|onnxruntime|grpc|google|pandas|pyarrow|duckdb|rich"),
        ("lhydra_index_builder.build", r"torch|lhydra\.training"),
        ("lhydra.evaluation.evaluate", r"torch|lhydra\.training"),
        ("lhydra.data.prepare", r"torch|lhydra\.training"),
    ],
)
def test_importing_a_part_brings_no_more_than_it_needs(module: str, forbidden: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [name for name in json.loads(ran.stdout) if re.fullmatch(rf"({forbidden})(\..*)?", name)] == []


def test_onnx_runtime_is_told_to_keep_what_it_knows_to_itself(tmp_path: Path) -> None:
    code = """
import lhydra.bundle.networks, onnxruntime, onnx.helper as h
x, y = (h.make_tensor_value_info(name, 1, [1]) for name in "xy")
graph = h.make_graph([h.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": __import__("numpy").ones(1, "f")})
"""
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment | {"HOME": str(tmp_path)})
    assert list(tmp_path.rglob("*")) == []
    assert ran.stderr == ""


def test_only_training_names_torch() -> None:
    names_torch = re.compile(r"^\s*(import|from) torch\b", re.MULTILINE)
    rooms = ("lhydra", "index_builder", "server", "client", "protos")
    found = {
        p.relative_to(ROOT) for room in rooms for p in (ROOT / room).rglob("*.py") if names_torch.search(p.read_text())
    }
    assert found
    assert {path.parts[:2] for path in found} == {("lhydra", "training")}


def contracts(root: Path) -> "subprocess.CompletedProcess[str]":
    """Checks the import contracts of the checkout at `root`, whose packages are found before the installed ones."""
    path = ":".join(str(root / folder) for folder in (".", "protos", "index_builder", "server", "client"))
    code = (
        "import sys; from importlinter.cli import lint_imports_command as main; sys.argv = ['', '--no-cache']; main()"
    )
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_import_contracts_hold() -> None:
    ran = contracts(ROOT)
    assert ran.returncode == 0, ran.stdout
    assert " 0 broken" in ran.stdout


@pytest.mark.parametrize(
    ("misplaced", "imports"),
    [
        ("lhydra/users/charts.py", "lhydra.bundle.catalog"),  # rooms side by side know nothing of each other
        ("lhydra/features/reading.py", "lhydra.data.dataset"),
        ("lhydra/domain_of_bundles.py", "lhydra.bundle.catalog"),  # a file in the root that no layer knows
        ("lhydra/bundle/strings_written.py", "lhydra.bundle.catalog_writer"),
        ("server/lhydra_server/rebuild.py", "lhydra_index_builder.build"),
        ("server/lhydra_server/tables.py", "lhydra.data.dataset"),
        ("client/lhydra_client/core.py", "lhydra.domain"),
        ("lhydra/evaluation/tensors.py", "torch"),
    ],
)
def test_a_file_in_the_wrong_room_breaks_a_contract(misplaced: str, imports: str, tmp_path: Path) -> None:
    for folder in ("lhydra", "protos", "index_builder", "server", "client"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / misplaced).write_text(f"import {imports}\n", encoding="utf-8")
    ran = contracts(tmp_path)
    assert ran.returncode != 0, ran.stdout
    assert misplaced.removesuffix(".py").split("/")[-1] in ran.stdout, ran.stdout
