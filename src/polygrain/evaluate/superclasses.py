"""Coarse and fine labels side by side: nearest neighbours vote for classes, and for superclasses that group them.

Both are the protocol `knn` on the same features, each with its own k selected on validation. Superclasses are given for
each data set and group its classes. Values are `{data set}/class/top1` and `{data set}/superclass/top1`, in whitened
features `{data set}/class/whitened/top1` and so on. Superclasses differ in size: `macro` weighs them equally.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from polygrain.evaluate import knn
from polygrain.evaluate.result import Result
from polygrain.evaluate.store import SPLITS, Features, FeatureSet, Integers
from polygrain.provenance.errors import UserError


def evaluate(
    features: Features,
    *,
    groups: dict[str, dict[str, list[int]]],
    spaces: list[Literal["raw", "whitened"]],
    k: list[int],
    temperature: float,
    shrinkage: float,
    byte_budget: int,
) -> Result:
    """Classify every data set's test split by class and by superclass.

    groups: data set -> superclass -> labels of its classes. The other values are those of `knn`. Raises UserError as
    `knn` does, for a data set without groups, and for groups that do not hold each class once.
    """
    both = dict[str, FeatureSet]()
    for name, dataset in features.datasets.items():
        if name not in groups:
            raise UserError(f"superclasses: groups holds no superclasses for {name}; add them in superclasses.yaml")
        of_class = superclass_of_class(name, groups[name], dataset.classes)
        both[f"{name}/class"] = dataset
        both[f"{name}/superclass"] = grouped(dataset, of_class)
    found = knn.evaluate(
        Features(both), spaces=spaces, k=k, temperature=temperature, shrinkage=shrinkage, byte_budget=byte_budget
    )
    return replace(found, note=features.note())


def superclass_of_class(name: str, groups: Mapping[str, list[int]], classes: int) -> Integers:
    """The superclass of each class, int64 [classes], in the order in which they are given."""
    listed = [label for members in groups.values() for label in members]
    if sorted(listed) != list(range(classes)) or not all(groups.values()):
        raise UserError(
            f"superclasses: the groups of {name} must hold each of the labels 0..{classes - 1} once and none be empty,"
            f" not {dict(groups)}"
        )
    of_class = np.zeros(classes, dtype=np.int64)
    for superclass, members in enumerate(groups.values()):
        of_class[members] = superclass
    return of_class


def grouped(dataset: FeatureSet, of_class: Integers) -> FeatureSet:
    """The data set with superclasses for labels. Prefixes of its train rows need not be balanced."""
    parts = {name: getattr(dataset, name) for name in SPLITS}
    changed = {name: replace(part, labels=of_class[part.labels]) for name, part in parts.items()}
    return replace(dataset, classes=int(of_class.max()) + 1, **changed)
