"""Features without mean and correlation on the train rows, whose labels play no part: x -> L^-1 (x - mean).

L L^T is their covariance plus `shrinkage` times its mean variance on the diagonal. Legend: N rows, D width.
"""

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


class Whitening:
    """The map, fitted to train rows. Where all of them are equal, it only centres."""

    def __init__(self, train_ND: Doubles, shrinkage: float) -> None:
        """shrinkage: towards equal variances, in mean variances."""
        self.mean_D = train_ND.mean(axis=0)
        covariance_DD = np.cov(train_ND, rowvar=False, bias=True).reshape(len(self.mean_D), -1)
        diagonal = shrinkage * float(covariance_DD.trace()) / len(self.mean_D) or 1.0
        self.inverse_DD = np.linalg.inv(np.linalg.cholesky(covariance_DD + diagonal * np.eye(len(self.mean_D))))

    def __call__(self, rows_ND: npt.NDArray[np.float32] | Doubles) -> Doubles:
        """Whitened rows, float64 [N, D]."""
        white_ND: Doubles = (rows_ND - self.mean_D) @ self.inverse_DD.T
        return white_ND
