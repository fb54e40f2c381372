"""One process of a comparison: CPU seconds of a run's steps as a JSON list.

python -m polygrain.cli.bench.side RUN STEPS KERNELS    with KERNELS deterministic or default

Nothing is pinned here: the environment comes from the process that compares.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from polygrain.cli.bench.run import WARM_UP
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.pins import pin_torch
from polygrain.train.run import Training
from polygrain.train.state import Identity


def main(arguments: Sequence[str]) -> None:
    """Take the steps to warm up, then STEPS more, and print the CPU seconds of each of these."""
    run, steps, kernels = arguments
    pin_torch()
    torch.use_deterministic_algorithms(kernels == "deterministic")
    config = stage_of(Project.here(), "pretrain", run).config
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch, "state.pt")
        training = Training(config, Path("data", config["dataset"]), state, Identity("", "", "", ""), resume=False)
    seconds = []
    for _ in range(WARM_UP + int(steps)):
        start = time.process_time()
        training.take_step()
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds[WARM_UP:]))


if __name__ == "__main__":
    main(sys.argv[1:])
