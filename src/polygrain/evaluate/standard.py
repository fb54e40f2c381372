"""Features of mean 0 and deviation 1 on the train rows, in numpy. Legend: N rows, D width."""

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.store import Floats

Doubles = npt.NDArray[np.float64]


class Standard:
    """The map from features to standardised features; labels play no part."""

    def __init__(self, train_ND: Floats) -> None:
        """Measure mean and deviation of each dimension on the train rows, float32 [N, D]."""
        wide_ND = train_ND.astype(np.float64)
        self.mean, deviation_D = wide_ND.mean(axis=0), wide_ND.std(axis=0)
        # A dimension that is constant up to rounding becomes zero: division would amplify the rounding.
        constant_D = deviation_D <= 1e-6 * np.abs(wide_ND).max(axis=0)
        self.scale = np.where(constant_D, 0.0, 1.0 / np.where(constant_D, 1.0, deviation_D))

    def __call__(self, rows_ND: Floats) -> Doubles:
        """Standardised rows, float64 [N, D]."""
        return np.asarray((rows_ND - self.mean) * self.scale)
