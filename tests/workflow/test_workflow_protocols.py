"""Every protocol of one run: the same bytes on one core and on two, where jobs run in another order."""

import hashlib
from pathlib import Path

import pytest
from workflow_checkout import Checkout

RUN = "runs/smoke/fashion-mnist/mugs/base/seed0"  # its checkpoint has all that a protocol may ask for

pytestmark = [pytest.mark.workflow, pytest.mark.long]


def results(checkout: Checkout, names: list[str], cores: int) -> dict[str, str]:
    """File -> hash of its content, of protocols that are computed anew."""
    folder = checkout.root / RUN / "results"
    for file in folder.glob("*"):
        file.unlink()
    targets = [f"{RUN}/results/{name}.json" for name in names]
    checkout.run("snakemake", "--cores", str(cores), *targets)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_protocol_gives_the_same_bytes_on_one_core_and_on_two(copy_of_built):
    checkout = copy_of_built()
    names = sorted(
        path.stem for path in Path(checkout.root, "params/evaluate").glob("*.yaml") if path.stem != "features"
    )
    two = results(checkout, names, 2)
    assert set(two) == {f"{name}.{kind}" for name in names for kind in ("json", "npz")}
    assert results(checkout, names, 1) == two
