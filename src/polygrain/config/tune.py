"""Tuning: the same number of trials for every method, drawn from the search space in params/tune/{method}.yaml.

A trial is a variant, `tune-N`, so its runs are ordinary runs. Trial 0 has the paper's own values; the others are drawn
from the space by a hash of method, trial and key, so a key that is added changes no other. Method, data, seeds, scales
and the score are the same rule for all: what differs is the space alone.
"""

import hashlib
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest

if TYPE_CHECKING:
    from polygrain.config.tune_models import Tuning

GROUP = "tune"
TRIALS = 16
FINALISTS = 2
"""So many of the trials are trained again at the second scale."""
SCALES = ("short", "cpu")
SEED = 100
"""Of all trials; the tables' seeds are others."""
DATASET = "fashion-mnist"
SCORED = (
    {"id": "linear", "group": "Fashion-MNIST", "label": "linear", "value": "fashion-mnist/top1"},
    {"id": "linear-1", "group": "Fashion-MNIST", "label": "1 % labels", "value": "fashion-mnist/1%/top1"},
    {"id": "transfer", "group": "Animal-MNIST", "label": "linear", "value": "animal-mnist/top1"},
)
"""The score is the mean of these validation accuracies: the compared columns of table 1."""
_TRIAL = re.compile(r"tune-(0|[1-9]\d*)")


def trial_of(variant: str) -> int | None:
    """The number of a trial, None for another variant."""
    match = _TRIAL.fullmatch(variant)
    return int(match[1]) if match else None


def trial(params: Path, method: str, number: int) -> dict[str, Any]:
    """What a trial changes: dotted key -> value. Raises UserError when there is no such trial."""
    if number >= TRIALS:
        raise UserError(f"params/{GROUP}: there is no trial {number}; every method has {TRIALS}, 0 to {TRIALS - 1}")
    tuning = read_tuning(params, method)
    if number == 0:
        return dict(tuning["paper"])
    return {key: _draw(space, f"{method}|{number}|{key}") for key, space in tuning["space"].items()}


def read_tuning(params: Path, method: str) -> "Tuning":
    """The tuning of a method, checked. Raises UserError when there is none, and for any fault in the file."""
    path = params / GROUP / f"{method}.yaml"
    if not path.is_file():
        known = [other.stem for other in path.parent.glob("[!.]*.yaml")]
        raise UserError(f"params/{GROUP}: no tuning of '{method}'{nearest(method, known)}")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, modified: int) -> "Tuning":
    from polygrain.config.tune_models import WrittenTuning  # pydantic is loaded where something is checked

    where = f"params/{GROUP}/{path.name}"
    content = read_mapping(path, where=where)
    WrittenTuning.of(where, content)
    if content["method"] != path.stem:
        raise UserError(f"{where}: its method is '{content['method']}'; the file has the name of the method")
    return cast("Tuning", content)


def hydra_overrides(changes: dict[str, Any]) -> list[str]:
    """The changes of a trial in Hydra's grammar; a key that no file has is an error there."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def table_of(params: Path, method: str) -> dict[str, Any]:
    """The table of all trials, as a person would write it."""
    tuning = read_tuning(params, method)
    first, second = SCALES
    groups = [_group(f"All trials, scale {first}", first, method, range(TRIALS))]
    if tuning["finalists"]:
        groups.append(_group(f"Trained again, scale {second}", second, method, tuning["finalists"]))
    keys = dict.fromkeys([*tuning["space"], *tuning["paper"]])
    settings = [{"id": key, "label": key.rpartition(".")[2].replace("_", " "), "setting": key} for key in keys]
    scored = [{**column, "protocol": "linear", "split": "validation"} for column in SCORED]
    score = {"id": "score", "group": "Validation", "label": "score", "mean_of": [column["id"] for column in SCORED]}
    return {
        "name": f"Tuning of {method}",
        "title": f"{TRIALS} trials",
        "caption": (
            "Top-1 accuracy (%) on the validation split; the score is the mean of the three, and rows are in its order."
            " Every method has as many trials. Trial 0 has the paper's values, the others are drawn at random."
        ),
        "dataset": DATASET,
        "seeds": [SEED],
        "order_by": "score",
        "groups": groups,
        "columns": [*settings, *scored, score],
    }


def _group(label: str, scale: str, method: str, trials: Any) -> dict[str, Any]:
    rows = [
        {"label": f"Trial {number}{' again' if scale == SCALES[1] else ''}", "method": method}
        | {"variant": f"tune-{number}", "scale": scale}
        for number in trials
    ]
    return {"label": label, "rows": rows}


def _draw(space: dict[str, Any], name: str) -> Any:
    """A value of a space: one of `choose`, or between the ends of `log` or `linear`, of two significant digits."""
    (law, given), share = next(iter(space.items())), int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13
    if law == "choose":
        return given[int(share * len(given))]
    low, high = map(float, given)
    value = math.exp(math.log(low) + share * math.log(high / low)) if law == "log" else low + share * (high - low)
    return float(f"{value:.2g}")
