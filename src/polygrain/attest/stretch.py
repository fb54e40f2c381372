"""A run's first steps, as the workflow would do them, up to a step at which the process ends.

    python -m polygrain.attest.stretch RUN STEP METRICS

Called again with a later step it continues from its saved state, like any half-done run. METRICS gets the lines of
metrics.jsonl so far. A run that is over before STEP ends as usual.
"""

import sys
from pathlib import Path
from runpy import run_module

from polygrain.provenance.files import write_text
from polygrain.train.run import Training
from polygrain.train.state import save_state

STOPPED = 9
"""Exit status of a process that stopped on the way."""


def stop_before(step: int, metrics: Path) -> None:
    """Let every training of this process save its state and end when it is about to take `step`, counted from 0."""
    take_step = Training.take_step

    def take_or_stop(self: Training) -> None:
        if self.step == step:
            save_state(self.state_path, self.state())
            write_text(metrics, "".join(self.metrics))
            sys.exit(STOPPED)
        take_step(self)

    Training.take_step = take_or_stop  # type: ignore[method-assign]


if __name__ == "__main__":
    stop_before(int(sys.argv[2]), Path(sys.argv[3]))
    sys.argv = ["polygrain", "pretrain", "--workflow", sys.argv[1]]
    run_module("polygrain.cli.main", run_name="__main__")
