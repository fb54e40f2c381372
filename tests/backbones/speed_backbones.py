"""Milliseconds of each params/backbone/*.yaml for 128 grey 32 px views, one AVX2 thread.

Run it as `python tests/backbones/speed_backbones.py`; it is no test.
"""

import sys
import time
from pathlib import Path

from polygrain.provenance.pins import pin_process, pin_torch

pin_process(sys.argv)
pin_torch()

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from polygrain.backbones.load import load_backbone  # noqa: E402

SIDE, BATCH = 32, 128
for path in sorted(Path(__file__).parents[2].glob("params/backbone/*.yaml")):
    config = OmegaConf.create({"input_size": SIDE, "backbone": OmegaConf.load(path)})
    torch.manual_seed(0)
    backbone = load_backbone(**OmegaConf.to_container(config, resolve=True)["backbone"], channels=1)  # type: ignore
    backbone = backbone.train().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    forward, both = [], []
    for _ in range(8):
        start = time.process_time()
        pooled = backbone(images).pooled
        middle = time.process_time()
        if pooled.requires_grad:
            pooled.square().mean().backward()
        forward.append(middle - start)
        both.append(time.process_time() - start)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    print(
        f"{path.stem:16s} {count:9d} parameters  forward {1e3 * min(forward):7.1f} ms"
        f"  forward and backward {1e3 * min(both):7.1f} ms"
    )
