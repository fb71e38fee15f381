"""Inner loops of a request, compiled at installation where a C compiler is at hand; else NumPy does the same, slower.

What they compute is defined, and what they equal is tested, beside the NumPy code that calls them: where `compiled` is
None, that code is what runs.
"""

from pathlib import Path

try:
    from lhydra.kernels import compiled
except ImportError:  # there was no C compiler at installation
    compiled = None  # type: ignore[assignment]
else:
    _sources = [path for kind in ("*.pyx", "*.pxi") for path in Path(__file__).parent.glob(kind)]  # none in a wheel
    if any(path.stat().st_mtime > Path(compiled.__file__).stat().st_mtime for path in _sources):
        compiled = None  # type: ignore[assignment] # code was pulled or edited, and `make setup` has not run since
