"""Student's t distribution for any positive degrees of freedom, in plain Python: the same bits under every release.

scipy has the same functions, but each Python gets another scipy, and a table's environment would name its version.
"""

import math

_TINY = 1e-300


def two_sided(t: float, degrees: float) -> float:
    """Probability of a value at least as far from zero as `t`."""
    whole = degrees + t * t
    return _beta(degrees / 2, 0.5, degrees / whole, t * t / whole)


def quantile(p: float, degrees: float) -> float:
    """The t that a share `p`, at least a half, of the distribution does not exceed."""
    low, high = 0.0, 1.0
    while 1 - two_sided(high, degrees) / 2 < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - two_sided(middle, degrees) / 2 < p else (low, middle)
    return high


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function at x = 1 - rest, by its continued fraction where that converges fast."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, rest, x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(logarithm) / a / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)), DLMF 8.17.22, evaluated forwards by Lentz's method."""
    value = c = 1.0
    d = 0.0
    for term in range(1, 10_000):
        m = term // 2
        if term % 2:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + part * d or _TINY)
        c = 1 + part / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
