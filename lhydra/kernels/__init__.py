"""Inner loops of a request, compiled at installation where a C compiler is at hand; else NumPy does the same, slower.

What they compute is defined, and what they equal is tested, beside the NumPy code that calls them: where `compiled` is
None, that code is what runs.
"""

try:
    from lhydra.kernels import compiled
except ImportError:  # there was no C compiler at installation
    compiled = None  # type: ignore[assignment]
