"""numpy with OpenBLAS's threads: products of matrices of whole numbers, which are exact in any order of adding."""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "4"  # before numpy: OpenBLAS makes its threads when it is loaded

import numpy as np
from cycles import digest, repeat

SIZE = 300


def cycle() -> str:
    matrix = (np.arange(SIZE * SIZE, dtype=np.float64) * 7919 % 101).reshape(SIZE, SIZE)
    for _ in range(40):
        matrix = (matrix @ matrix.T) % 101
    return digest(matrix.tobytes())


assert len(os.listdir("/proc/self/task")) > 1
repeat(cycle)
