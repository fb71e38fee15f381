"""The environment of programs that measure; numeric libraries read it when they are loaded, so it is set before."""

import os


def untuned_blas() -> None:
    """Takes out a core type and a cache size that were fixed for OpenBLAS: they are not what a user's process has."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)


def one_thread_per_library() -> None:
    """Gives every numeric library one thread, and the BLAS of a user's process."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    untuned_blas()
