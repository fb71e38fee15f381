"""Tracing graphs with the older exporter of torch, which takes half a second a model instead of twenty.

It is for tests whose subject is not the graphs: training still proves them equal to torch. The tiny model is exported
as for users, and in `make test-deep` so are the demo, the sample of real plays and what asks for `quick_export`.
Fixtures that outlive a test do it inside `quickly()`, processes that a test starts with `environ(folder)`.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import torch


def traced(
    module: "torch.nn.Module",
    example: "tuple[torch.Tensor, ...]",
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    shapes: list[dict[int, Any]],
) -> "onnx.ModelProto":
    """What stands for `lhydra.training.export._traced`."""
    import onnx
    import torch

    from lhydra.training import export

    axes = {name: {i: dim.__name__ for i, dim in own.items()} for name, own in zip(inputs, shapes, strict=True)}
    with tempfile.TemporaryDirectory(prefix="lhydra-") as folder:
        graph = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            example,
            graph,
            dynamo=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=export.OPSET,
        )
        return onnx.load(str(graph))


@contextmanager
def quickly() -> Iterator[None]:
    """Traces graphs so until the block ends."""
    import pytest

    from lhydra.training import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_traced", traced)
        yield


def environ(folder: Path) -> dict[str, str]:
    """The environment of a `lhydra train` that traces graphs so; `folder` comes to hold this file for it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(__file__, folder / "sitecustomize.py")
    return os.environ | {"PYTHONPATH": str(folder)}


if __name__ == "sitecustomize" and "train" in sys.orig_argv:
    import warnings

    from lhydra.training import export

    warnings.simplefilter("ignore")
    export._traced = traced
