import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

U16 = npt.NDArray[np.uint16]  # the bits of float16

def co_listening_scores(
    neighbours: npt.NDArray[np.int32], weights: U16, played: I64, counts: F32, candidates: I64
) -> F32: ...
