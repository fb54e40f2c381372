"""Features of mean 0 and deviation 1 on the train rows, in numpy. Legend: N rows, D width.

Moments are added up over blocks of rows (`store.blocks`), so that float64 copies stay small.
"""

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.store import Floats, blocks

Doubles = npt.NDArray[np.float64]


class Scaling:
    """The map from features to standardised features; labels play no part."""

    def __init__(self, train_ND: Floats) -> None:
        """Measure mean and deviation of each dimension on the train rows, float32 [N, D]."""
        parts, count = list(blocks(train_ND)), len(train_ND)
        wide = (part.astype(np.float64) for part in parts)
        self.mean: Doubles = np.sum([rows.sum(axis=0) for rows in wide], axis=0) / count
        squares_D = np.sum([np.square(part - self.mean).sum(axis=0) for part in parts], axis=0)
        deviation_D = np.sqrt(squares_D / count)
        largest_D = np.max([np.abs(part).max(axis=0) for part in parts], axis=0).astype(np.float64)
        # A dimension that is constant up to rounding becomes zero: division would amplify the rounding.
        constant_D = deviation_D <= 1e-6 * largest_D
        self.scale: Doubles = np.where(constant_D, 0.0, 1.0 / np.where(constant_D, 1.0, deviation_D))

    def __call__(self, rows_ND: Floats) -> Doubles:
        """Standardised rows, float64 [N, D]."""
        return np.asarray((rows_ND - self.mean) * self.scale)

    def inputs(self, rows_ND: Floats) -> Doubles:
        """Standardised rows with the constant 1 behind them, the inputs of a linear layer, float64 [N, D + 1]."""
        inputs = np.ones((len(rows_ND), rows_ND.shape[1] + 1))
        np.subtract(rows_ND, self.mean, out=inputs[:, :-1])
        inputs[:, :-1] *= self.scale
        return inputs
