"""Checkouts that tests share: a fresh one, one with the smoke table built, one with it recorded."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from workflow_checkout import SMOKE, Checkout, make_checkout


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh checkout in which nothing is built; tests must not build in it."""
    return make_checkout(tmp_path_factory.mktemp("fresh"))


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Checkout], last: str) -> Checkout:
    """A checkout that test processes side by side share: the first of them makes it, `last` is its last file."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root /= name
    with FileLock(root.with_suffix(".lock")):
        if not (root / last).is_file():
            shutil.rmtree(root, ignore_errors=True)
            make(root)
    return Checkout(root)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the smoke table built on two cores; tests must not change it."""

    def make(root: Path) -> Checkout:
        checkout = make_checkout(root)
        checkout.build()
        return checkout

    return shared(tmp_path_factory, "built", make, SMOKE)


@pytest.fixture(scope="session")
def recorded(built: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of it after `record`, nothing committed; tests must not change it."""

    def make(root: Path) -> Checkout:
        checkout = Checkout(Path(shutil.copytree(built.root, root, symlinks=True)))
        checkout.run("polygrain", "record", SMOKE)
        return checkout

    return shared(tmp_path_factory, "recorded", make, f"reports/published/{Path(SMOKE).parent.name}/table1.pdf")


@pytest.fixture
def copy_of_built(built: Checkout, tmp_path: Path) -> Callable[[], Checkout]:
    """A private copy of the built checkout, with its modification times."""

    def copy() -> Checkout:
        shutil.copytree(built.root, tmp_path / "copy", symlinks=True)
        return Checkout(tmp_path / "copy")

    return copy
