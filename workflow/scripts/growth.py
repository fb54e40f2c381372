"""How the commands around a build grow with its number of jobs: planning, recording, checking, bringing back.

python workflow/scripts/growth.py [--seeds N ...]

In a scratch clone of HEAD the smoke table of one seed is built. The runs of further seeds are copies of its runs, each
with a record of its own as its job would leave it, and models and features with bytes of their own: so nothing is
trained, and every command does all of its work. About 40 minutes on two idle cores with the defaults.
"""

import argparse
import os
import re
import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from common import positive, start
from tqdm import tqdm

from polygrain.cli.claims import current_stages
from polygrain.config.project import Project
from polygrain.provenance.scratch import run, scratch_clone
from polygrain.provenance.sidecar import recorded
from polygrain.provenance.stage import Stage, in_order

FIRST = "reports/smoke-seeds1/table1.pdf"


def table_of(seeds: int) -> str:
    """The smoke table over so many seeds."""
    return FIRST.replace("seeds1", f"seeds{seeds}")


def make_up(root: Path, stages: Sequence[Stage]) -> None:
    """Give every stage of the working directory `root` that has no output yet those of the first seed's stage."""
    for stage in tqdm(in_order(stages), desc="copies", leave=False, disable=None):
        if (root / stage.outputs[0]).is_file():
            continue
        with recorded(stage):
            for path in stage.outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(
                    re.sub(r"seed(s?)\d+", lambda found: f"seed{found[1]}{1 if found[1] else 0}", str(path)), path
                )
                if path.suffix == ".safetensors":
                    path.write_bytes(path.read_bytes() + str(path).encode())


def measured(root: Path, *command: str) -> dict[str, float]:
    """Wall seconds, and CPU seconds of the command and its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(root, *command)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return {"wall s": wall, "CPU s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(root: Path, seeds: int) -> pd.DataFrame:
    """Every command once, on a table over so many seeds of which nothing is recorded."""
    target, settings = table_of(seeds), root / "params" / "table" / "table1.yaml"
    listed = f"seeds: {list(range(seeds))}"
    settings.write_text(re.sub(r"^seeds: .*$", listed, settings.read_text("utf-8"), flags=re.MULTILINE), "utf-8")
    stages = current_stages(Project(root), [target])
    make_up(root, stages)
    plan = ("snakemake", "--dry-run", "--cores", "1", target)
    found = {"snakemake -n, all in place": measured(root, *plan)}
    found["record"] = measured(root, "polygrain", "record", target)
    found["record again"] = measured(root, "polygrain", "record", target)
    found["check-lock"] = measured(root, "polygrain", "check-lock", target)
    found["dvc status"] = measured(root, "dvc", "status")
    for stage in stages:
        for path in (*stage.outputs, stage.sidecar):
            path.unlink()
    found["snakemake -n, nothing there"] = measured(root, *plan)
    found["restore, all outputs gone"] = measured(root, "polygrain", "restore", target)
    found["restore, all in place"] = measured(root, "polygrain", "restore", target)
    table = pd.DataFrame(found).T.rename_axis("command").reset_index()
    return table.assign(jobs=len(stages), lines=len(Path("dvc.yaml").read_text(encoding="utf-8").splitlines()))


def main(project: Project, options: argparse.Namespace) -> int:
    """Build one seed, then measure each size."""
    tables = []
    with scratch_clone(project.root, "HEAD") as root:
        os.chdir(root)
        run(root, "snakemake", "--cores", "all", FIRST)
        for seeds in options.seeds:
            tables.append(measure(root, seeds))
            one = tables[-1]
            print(f"\n{one.jobs[0]} jobs (dvc.yaml: {one.lines[0]} lines)")
            print(one[["command", "wall s", "CPU s"]].to_string(index=False, float_format="%.1f"), flush=True)
        os.chdir(project.root)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="growth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=positive, nargs="+", default=[2, 28, 84], metavar="N")
    start(parser, main)
