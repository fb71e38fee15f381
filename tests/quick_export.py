"""Tracing graphs with the older exporter of torch, which takes half a second a model instead of twenty.

It is for tests of training whose subject is not the graphs: training still proves them equal to torch. The tiny model,
the demo and the real data sets are exported as for users. Processes that a test starts do it where a folder with this
file as `sitecustomize.py` stands in PYTHONPATH.
"""

import sys
import tempfile
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


if __name__ == "sitecustomize" and "train" in sys.orig_argv:
    import warnings

    from lhydra.training import export

    warnings.simplefilter("ignore")
    export._traced = traced
