"""Milliseconds of the backbones in params/backbone/*.yaml on one AVX2 thread.

Those made for small images get 128 grey views of 28 px, the others 2 colour views of 224 px. Run it as
`python tests/backbones/speed_backbones.py [NAME ...]` (without names: all of them); it is no test.
"""

import sys
import time
from pathlib import Path

from polygrain.provenance.pins import pin_process, pin_torch

pin_process(sys.argv)
pin_torch()

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from polygrain.backbones.droppath import set_drop_path_key  # noqa: E402
from polygrain.backbones.load import load_backbone  # noqa: E402

SMALL = ("pixels", "resnet", "resnet-smoke", "swin-small-images", "vit")
for path in sorted(Path(__file__).parents[2].glob("params/backbone/*.yaml")):
    if sys.argv[1:] and path.stem not in sys.argv[1:]:
        continue
    side, batch, channels, rounds = (28, 128, 1, 8) if path.stem in SMALL else (224, 2, 3, 3)
    config = OmegaConf.create({"input_size": side, "backbone": OmegaConf.load(path)})
    torch.manual_seed(0)
    backbone = load_backbone(**OmegaConf.to_container(config, resolve=True)["backbone"], channels=channels)  # type: ignore
    backbone = backbone.train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    forward, both = [], []
    for step in range(rounds):
        set_drop_path_key(backbone, 0, step, batch)
        start = time.process_time()
        pooled = backbone(images).pooled
        middle = time.process_time()
        if pooled.requires_grad:
            pooled.square().mean().backward()
        forward.append(middle - start)
        both.append(time.process_time() - start)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    print(
        f"{path.stem:20s} {count:9d} parameters  {batch} views of {side} px: forward {1e3 * min(forward):7.1f} ms"
        f"  forward and backward {1e3 * min(both):7.1f} ms",
        flush=True,
    )
