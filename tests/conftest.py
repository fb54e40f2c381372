"""Tests run with the same pinned settings as jobs do: the test process starts itself again if it lacks them.

With POLYGRAIN_REQUIRE=all, as in CI, a skipped test fails the session unless it is marked `gpu`.
"""

import os
import sys

import pytest
from provenance_fixtures import _recorded, built, fresh, own_store, project, recorded_project, store

from polygrain.provenance.pins import pin_process, pin_torch, pinned

# the toy project of tests/provenance and tests/audit, built once for both
__all__ = ["_recorded", "built", "fresh", "own_store", "project", "recorded_project", "store"]

_skipped: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if not pinned():
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        sys.stdout.flush()
        pin_process(["-m", "pytest", *config.invocation_params.args])
    pin_torch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workflow tests go first: they are the longest, and one of two test processes builds the checkout they share."""
    import torch

    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)
    missing = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(missing)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "gpu" not in report.keywords and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("POLYGRAIN_REQUIRE") == "all":
        print(f"\nPOLYGRAIN_REQUIRE=all, but these were skipped: {', '.join(_skipped)}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
