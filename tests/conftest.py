"""Tests run with the same pinned settings as jobs do: the test process starts itself again if it lacks them."""

import sys

import pytest

from polygrain.provenance.pins import pin_process, pin_torch, pinned


def pytest_configure(config: pytest.Config) -> None:
    if not pinned():
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        sys.stdout.flush()
        pin_process(["-m", "pytest", *config.invocation_params.args])
    pin_torch()
