"""A training of two modules, in states that differ, and which changed lines of it a run leaves out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from polygrain.attest import executed
from polygrain.attest.changed import Place, places_to_run
from polygrain.attest.definitions import Tree
from polygrain.attest.pieces import holds

TRAIN = """
from polygrain.rates import RATE, decayed

LATE = 100

class Model:
    scale = 2.0

    def __init__(self, start):
        self.value = start

    def loss(self):
        return self.scale * self.value

    def finish(self):
        self.value = round(self.value, 3)

def run(steps):
    model = Model(1.0)
    for step in range(steps):
        rate = RATE if step < 50 else RATE / 10
        if step > LATE:
            rate = decayed(rate)
        if rate < 0:
            raise ValueError("a negative rate")
        model.value -= rate * model.loss()
    if steps > LATE:
        model.finish()
    return model.value
"""
RATES = """
RATE = 0.1
HALF = 2
FACTOR = 1 / HALF

def decayed(rate):
    return rate * FACTOR
"""
OLD = {"train": TRAIN, "rates": RATES}


def write(folder: Path, modules: Mapping[str, str]) -> Tree:
    package = folder / "src/polygrain"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", **modules}.items():
        (package / f"{name}.py").write_text(text)
    return Tree(folder / "src", ["polygrain", *(f"polygrain.{name}" for name in modules)])


def changed(folder: Path, new: Mapping[str, str], old: Mapping[str, str] = OLD) -> list[Place]:
    return places_to_run(write(folder / "old", old), write(folder / "new", new))


def never_ran(folder: Path, new: Mapping[str, str], steps: int = 10, python: str = sys.executable) -> list[str]:
    """The changed lines of the new state that so many steps do not reach."""
    places = changed(folder, new)
    driver = f"from polygrain.train import run\nrun({steps})\n"
    (folder / "new/src/driver.py").write_text(driver)
    source, result, task = folder / "new/src", folder / "result.json", folder / "task.json"
    files = {str(source / path): list(range(1, 200)) for path in {place.path for place in places}}
    task.write_text(json.dumps({"files": files, "result": str(result)}))
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([python, executed.__file__, str(task), "driver"], env=environment, check=True)
    seen = json.loads(result.read_text())["positions"]
    return [
        f"{place.path.rpartition('/')[2]}:{place.text}"
        for place in places
        if not place.exempt
        and not any(holds(place.region, tuple(position)) for position in seen.get(str(source / place.path), []))
    ]
