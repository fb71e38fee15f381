"""Laws of the house that no linter knows: docstrings with types, files of one subject, a map that names every file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("lhydra", "index_builder/lhydra_index_builder", "server/lhydra_server", "client/lhydra_client"),
    *("protos/lhydra_protos", "benchmarks"),
)
MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if not re.search(r"_pb2(_grpc)?\.py$", path.name)
)
MAX_LINES = 400
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(module: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def section(docstring: str, name: str) -> str | None:
    """The text of a section of a Google-style docstring, None where there is none."""
    lines = iter(docstring.splitlines())
    for line in lines:
        if line.strip() == f"{name}:":
            indent = len(line) - len(line.lstrip())
            inside = []
            for following in lines:
                if following.strip() and len(following) - len(following.lstrip()) <= indent:
                    break
                inside.append(following)
            return "\n".join(inside)
    return None


def parameters(function: Function) -> list[str]:
    """The parameters that a caller gives by name."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [one.arg for one in every if one.arg not in ("self", "cls") and not one.arg.startswith("_")]


def raised(function: Function) -> set[str]:
    """The exceptions that the function's own lines raise by name."""
    found, waiting = set(), list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            found |= {name} if name[:1].isupper() and name != "AssertionError" else set()
        waiting += ast.iter_child_nodes(node)
    return found


def is_called_from_outside(function: Function) -> bool:
    """Whether it is public and takes anything; properties are not called."""
    names = {ast.unparse(one).split("(")[0].split(".")[-1] for one in function.decorator_list}
    attribute = names & {"property", "cached_property", "setter", "overload"}
    return not function.name.startswith("_") and bool(parameters(function)) and not attribute


def missing_of(function: Function, docstring: str) -> Iterator[str]:
    """What the docstring of a public function does not say."""
    args = section(docstring, "Args") or ""
    unnamed = [name for name in parameters(function) if not re.search(rf"(^|[\s,*]){name}\b[^:\n]*:", args)]
    if unnamed:
        yield f"no Args for {', '.join(unnamed)}"
    returns = ast.unparse(function.returns) if function.returns else "None"
    if returns not in ("None", "NoReturn") and not (section(docstring, "Returns") or section(docstring, "Yields")):
        yield "no Returns"
    if (errors := raised(function)) and section(docstring, "Raises") is None:
        yield f"no Raises for {', '.join(sorted(errors))}"


def missing(body: list[ast.stmt], holder: str = "") -> Iterator[str]:
    """What the docstrings of public functions, methods and classes do not say."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
            if init is not None and parameters(init):
                docstring = f"{ast.get_docstring(node) or ''}\n{ast.get_docstring(init) or ''}"
                args = section(docstring, "Args") or ""
                unnamed = [name for name in parameters(init) if not re.search(rf"(^|[\s,*]){name}\b[^:\n]*:", args)]
                if unnamed:
                    yield f"{node.lineno} {node.name}: no Args for {', '.join(unnamed)}"
            yield from missing(node.body, f"{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and is_called_from_outside(node):
            for what in missing_of(node, ast.get_docstring(node) or ""):
                yield f"{node.lineno} {holder}{node.name}: {what}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_public_functions_say_what_they_take_return_and_raise(module: Path) -> None:
    assert not list(missing(parsed(module).body))


def test_the_check_of_docstrings_sees_what_is_missing() -> None:
    source = '''
class Index:
    def __init__(self, dim): ...
    def search(self, k: int, _seen: int = 0) -> list[int]:
        """Returns rows.

        Args:
            k: how many.
        """
        if k < 0:
            raise ValueError
        return []
    def _hidden(self, x): ...
def whole(rows: int) -> None:
    """Says it all.

    Args:
        rows: of the catalog.
    """
'''
    found = list(missing(ast.parse(source).body))
    assert found == [
        "2 Index: no Args for dim",
        "4 Index.search: no Returns",
        "4 Index.search: no Raises for ValueError",
    ]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_has_one_subject(module: Path) -> None:
    lines = (ROOT / module).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    body = [node for node in parsed(module).body if not isinstance(node, ast.Expr)]
    only_names = bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)
    faces = (
        "client/lhydra_client/__init__.py",
        "benchmarks/latency/__main__.py",
        "benchmarks/ann/__main__.py",
        "benchmarks/drills/__main__.py",
        "benchmarks/loop/__main__.py",
    )
    assert not only_names or str(module) in faces, "it only forwards names"


def test_the_map_names_every_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.(?:py|proto))`", text))
    in_folders = {str(path) for path in MODULES if not path.name.startswith("__init__")}
    assert in_folders - named == set()
    known = {str(path) for path in MODULES} | {
        path.name for path in MODULES
    }  # a file named before goes by its own name
    assert {name for name in named - known if not (ROOT / name).exists()} == set()


def test_kernels_are_files_of_one_subject_that_the_map_names() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for kernel in (ROOT / "lhydra" / "kernels").glob("*.p[yx][xi]"):
        assert len(kernel.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
        assert f"`{kernel.name}`" in text


def test_the_map_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/test_\w+\.py)(?:::(\w+))?`", text)
    assert named
    for file, test in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"
