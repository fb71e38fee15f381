"""What tests of compiled kernels share: when they run, and the NumPy code that they compare with."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lhydra import kernels

where_a_compiler_is = pytest.mark.skipif(
    kernels.compiled is None and not shutil.which("cc"), reason="NO C COMPILER: lhydra.kernels is not compiled"
)


@contextmanager
def plain() -> Iterator[None]:
    """No compiled kernels, as where there was no C compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "compiled", None)
        yield
