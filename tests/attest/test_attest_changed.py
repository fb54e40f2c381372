"""What counts as changed code, and that a change which does not run is found."""

import sys
from pathlib import Path

import pytest
from attest_toy import OLD, RATES, TRAIN, changed, never_ran

MOVED = {
    "train": TRAIN.replace("import RATE, decayed", "import RATE\nfrom polygrain.fade import decayed"),
    "rates": "RATE = 0.1\n",
    "fade": "HALF = 2\nFACTOR = 1 / HALF\n\ndef decayed(rate):\n    return rate * FACTOR\n",
}


def edited(old: str, new: str, module: str = "train") -> dict[str, str]:
    assert old in OLD[module]
    return {**OLD, module: OLD[module].replace(old, new)}


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        edited("rate = RATE if", "rate: float = RATE if"),  # a type
        edited("def run(steps):", 'def run(steps: int) -> "float":\n    """Run."""'),
        edited("def finish", "# a remark\n    def finish"),
        edited("a negative rate", "no negative rate"),  # what a person is told
        {**OLD, "rates": f"import math\n{RATES}"},
        MOVED,
    ],
)
def test_nothing_has_to_run_for_texts_types_and_what_moved(new, tmp_path):
    assert changed(tmp_path, new) == []


@pytest.mark.parametrize(
    "new",
    [
        edited("-= rate", "-= 1 * rate"),
        edited("self.scale * self", "self.value * self"),
        edited("scale = 2.0", "scale = 3.0"),
        edited("RATE = 0.1", "RATE = 0.2", "rates"),
        edited("if steps > LATE:\n        model.finish()\n    ", ""),  # lost code
        edited("    for step in range(steps):", "    total = 0\n    for step in range(steps):"),
    ],
)
def test_changed_code_that_runs_is_found_and_has_run(new, tmp_path):
    assert changed(tmp_path / "a", new)
    assert never_ran(tmp_path / "b", new, steps=200) == []


@pytest.mark.parametrize(
    ("new", "line"),
    [
        (edited("model.finish()", "model.finish(); model.value += 1"), "train.py:model.finish(); model.value += 1"),
        (edited("round(self.value, 3)", "round(self.value, 2)"), "train.py:self.value = round(self.value, 2)"),
        (edited("else RATE / 10", "else RATE / 20"), "train.py:rate = RATE if step < 50 else RATE / 20"),
        (edited("else RATE / 10", "else -RATE / 10"), "train.py:rate = RATE if step < 50 else -RATE / 10"),
        (edited("rate * FACTOR", "rate / FACTOR", "rates"), "rates.py:return rate / FACTOR"),
        # a constant that only a line reads which does not run
        (edited("FACTOR = 1 / HALF", "FACTOR = 0.6", "rates"), "rates.py:return rate * FACTOR"),
        (edited("HALF = 2", "HALF = 3", "rates"), "rates.py:return rate * FACTOR"),
        (edited("if step > LATE:", "if step > LATE and step % 2:"), "train.py:if step > LATE and step % 2:"),
        # a method that is gone lets another one be found, one that is new hides another one
        (edited("def finish(self)", "def end(self)"), "train.py:model.finish()"),
        # a function that moved as it was, to where its constant is another one
        ({**MOVED, "fade": MOVED["fade"].replace("1 / HALF", "2 / HALF")}, "fade.py:return rate * FACTOR"),
        # the name of a function that did not change now means another function
        (
            {
                **edited("import RATE, decayed", "import RATE\nfrom polygrain.other import decayed"),
                "other": "def decayed(rate):\n    return 2 * rate\n",
            },
            "train.py:rate = decayed(rate)",
        ),
    ],
)
def test_changed_code_that_never_runs_is_named(new, line, tmp_path):
    assert line in never_ran(tmp_path, new)


def test_what_can_only_raise_is_exempt(tmp_path):
    new = edited("if rate < 0:\n", "if rate < 0:\n            text = f'{rate}'\n            print(text)\n")
    places = changed(tmp_path / "a", new)
    assert [place.text for place in places if place.exempt]
    assert never_ran(tmp_path / "b", new) == []
    stores = edited("if rate < 0:\n", "if rate < 0:\n            model.value = 3\n")
    assert "train.py:model.value = 3" in never_ran(tmp_path / "c", stores)


def test_a_function_that_nothing_names_cannot_run_and_is_exempt(tmp_path):
    more = "\n\ndef halved(rate):\n    return quartered(2 * rate)\n\n\ndef quartered(rate):\n    return rate / 4\n"
    unused = {**OLD, "rates": RATES + more}
    places = changed(tmp_path / "a", unused)
    assert len(places) == 2
    assert all(place.exempt for place in places)
    late = {
        **unused,
        "train": TRAIN.replace("import RATE, d", "import RATE, halved, d").replace("= d", "= halved(rate)  # d"),
    }
    assert "rates.py:return rate / 4" in never_ran(tmp_path / "b", late)
    text = {**unused, "train": TRAIN.replace("LATE = 100", "LATE = 100\nUSED = 'quartered'")}
    assert never_ran(tmp_path / "c", text) == ["rates.py:return rate / 4"]


# whichever Pythons of those that are supported are installed side by side; at least this one
PYTHONS = {sys.executable} | {
    str(path)
    for root in (Path(sys.base_prefix).parent, Path("/usr"))
    for version in ("3.11", "3.12", "3.13", "3.14")
    for path in root.glob(f"{version}*/bin/python{version}")
}


@pytest.mark.parametrize("python", sorted(PYTHONS))
def test_every_python_sees_the_same(python, tmp_path):
    new = edited("else RATE / 10", "else RATE / 20")
    assert never_ran(tmp_path, new, python=python) == ["train.py:rate = RATE if step < 50 else RATE / 20"]
