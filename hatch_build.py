"""Compiles `lhydra.kernels` while Lhydra is installed; without Cython or a C compiler it installs all the same.

`python hatch_build.py` compiles it again after a change.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
KERNELS = Path("lhydra", "kernels")
# Nothing that depends on the machine, and nothing that changes what numbers mean: on ARM, products and sums would be
# contracted without being asked for; -fwrapv is what Python itself is compiled with.
FLAGS = "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fwrapv"


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled module beside its source, where wheels and editable installations take it from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles before files are collected.

        Args:
            version: of the wheel, standard or editable.
            build_data: is told that the wheel holds machine code.
        """
        done = subprocess.run([sys.executable, __file__], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            why = " ".join(done.stderr.strip().splitlines()[-1:])
            self.app.display_warning(f"lhydra.kernels is not compiled, requests take longer: {why}")
            return
        build_data.update(pure_python=False, infer_tag=True, artifacts=[f"{KERNELS.as_posix()}/*.so"])


def compile_kernels() -> None:
    """Compiles the module in place, or leaves none of an older source behind; who imports meanwhile finds one whole."""
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(dir=KERNELS) as folder:
        try:
            compiled = built(folder)
        except BaseException:
            for old in KERNELS.glob("compiled.*.so"):
                old.unlink(missing_ok=True)
            raise
        compiled.replace(KERNELS / compiled.name)


def built(folder: str) -> Path:
    """Compiles the module.

    Args:
        folder: to build in.

    Returns:
        The file of the module, in that folder.
    """
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    source = Extension("lhydra.kernels.compiled", [str(KERNELS / "compiled.pyx")], extra_compile_args=[*FLAGS])
    modules = cythonize([source], build_dir=folder, quiet=True, force=True)
    build = Distribution({"name": "lhydra", "packages": [], "ext_modules": modules}).get_command_obj("build_ext")
    build.build_lib = build.build_temp = folder
    build.ensure_finalized()
    build.run()
    return next(Path(folder).rglob("compiled.*.so"))


if __name__ == "__main__":
    compile_kernels()
