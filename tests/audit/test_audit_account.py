"""What `check-lock` says of two environments."""

from dataclasses import replace
from pathlib import Path

import pytest

from polygrain.audit.account import Account, environment_differences

HERE = Account(Path("a.json"), "", "", "", 0.0, 0.0, 0.0, "", False, {"python": "3.11.2", "vendor": "x"}, {})


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"python": "3.11.7", "vendor": "x"}, "; its environment differs in python (3.11.7 recorded, 3.11.2 here)"),
        ({"python": "3.11.2"}, "; its environment differs in vendor (not said recorded, x here)"),
        (HERE.machine, "; its environment differs in no recorded fact"),
    ],
)
def test_the_facts_that_differ_are_named(machine: dict[str, str], said: str) -> None:
    assert environment_differences(HERE, replace(HERE, machine=machine)) == said
    assert environment_differences(HERE, None) == environment_differences(None, HERE) == ""
