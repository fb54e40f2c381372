from collections.abc import Callable

import numpy as np
import pytest

from polygrain.evaluate.store import Features, FeatureSet, Split

Maker = Callable[..., Features]


def make_features(
    *,
    names: tuple[str, ...] = ("toy",),
    rows: tuple[int, int, int] = (400, 150, 200),
    width: int = 24,
    classes: int = 5,
    separation: float = 0.6,
    seed: int = 0,
) -> Features:
    """Gaussian classes; train rows are dealt round-robin over classes, so that prefixes are balanced."""
    generator = np.random.default_rng(seed)
    datasets = {}
    for name in names:
        centres = generator.normal(size=(classes, width)) * separation
        splits, first = [], 0
        for count in rows:
            labels = np.arange(count) % classes
            features = (centres[labels] + generator.normal(size=(count, width))).astype(np.float32)
            splits.append(Split(features, labels, np.arange(first, first + count)))
            first += count
        datasets[name] = FeatureSet(name, classes, *splits)
    return Features(datasets)


@pytest.fixture
def features() -> Maker:
    return make_features
