"""Rows on the unit sphere whose products are exact, in numpy, for protocols that start without torch.

Entries are whole multiples of 2^-26, so a product of two rows is a whole multiple of 2^-52 and its partial sums fit the
53 bits of a float64: no order of summation changes it. `polygrain.nn.neighbours` does the same in torch.
Legend: N rows, M rows, D width.
"""

import numpy as np
import numpy.typing as npt

GRID = 2.0**26

Doubles = npt.NDArray[np.float64]


def on_grid(rows_ND: npt.NDArray[np.float32] | Doubles) -> Doubles:
    """Scale rows to unit length, as whole float64 numbers in units of 2^-26; rows of zeros stay zeros."""
    wide_ND = rows_ND.astype(np.float64)
    lengths_N1 = np.sqrt(np.square(wide_ND).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(wide_ND / np.maximum(lengths_N1, 1e-12) * GRID))


def cosines(rows_ND: Doubles, others_MD: Doubles) -> Doubles:
    """Cosines [N, M], -1..1, of rows that `on_grid` made; equal rows have exactly equal cosines."""
    return np.asarray(rows_ND @ others_MD.T / GRID**2)
