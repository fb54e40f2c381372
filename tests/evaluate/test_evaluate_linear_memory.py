"""What a linear probe holds in memory for rows of many blocks, in a process of its own.

`python tests/evaluate/test_evaluate_linear_memory.py FOLDER ROWS WIDTH CLASSES` measures any size, with its own file in
FOLDER. ImageNet's 1,281,167 rows of width 2,048 are like 200,000 x 512 but for the width: blocks decide, not rows.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from polygrain.evaluate.store import BLOCK, Features, FeatureSet, Split


def write(path: Path, rows: int, width: int, classes: int) -> None:
    generator, splits = np.random.default_rng(0), []
    for count in (rows, rows // 20, rows // 20):
        features = generator.standard_normal((count, width), dtype=np.float32)
        splits.append(Split(features, np.arange(count) % classes, np.arange(count)))
    Features({"toy": FeatureSet("toy", classes, *splits)}).save(path)


def held() -> float:
    """Memory of this process that is no page of a file, MB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) / 1000


def measure(path: Path) -> None:
    """Print the largest growth over what the process held before, MB, looked at every 2 ms, and the CPU seconds."""
    import torch

    from polygrain.evaluate import linear

    torch.set_num_threads(1)
    torch.ones(256, 256) @ torch.ones(256, 256)  # the libraries' own buffers
    before, largest, done = held(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], held() - before)

    watcher, start = threading.Thread(target=watch), time.process_time()
    watcher.start()
    features = Features.load(path)
    linear.evaluate(features, labels=["all", "10%"], decays=[0.1], folds=2, iterations=1, tolerance=1e-5)
    done.set()
    watcher.join()
    print(largest[0], time.process_time() - start)


def test_memory_grows_with_a_block_and_not_with_the_rows(tmp_path: Path) -> None:
    rows, width, classes = 4 * BLOCK, 64, 200
    write(tmp_path / "features.safetensors", rows, width, classes)
    command = [sys.executable, __file__, str(tmp_path / "features.safetensors")]
    # else glibc keeps what was freed in pieces below 32 MB
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    block = 8 * BLOCK * classes / 1e6  # logits of a block
    whole = 8 * rows * classes / 1e6  # a table of labels of all rows
    assert float(done.stdout.split()[0]) < 5 * block + 4 * 8 * BLOCK * width / 1e6 < 2 * whole


if __name__ == "__main__":
    if len(sys.argv) > 2:
        path = Path(sys.argv[1]) / "features.safetensors"
        write(path, *map(int, sys.argv[2:]))
        subprocess.run([sys.executable, __file__, str(path)], check=True)
    else:
        measure(Path(sys.argv[1]))
