"""The checkpoint: a safetensors file of the method, with one metadata key (several are written in random order)."""

import json
from pathlib import Path

from safetensors.torch import save
from torch import nn

from polygrain.provenance.files import write_bytes

METADATA = "polygrain"


def save_checkpoint(path: Path, method: nn.Module, *, encoder: str, backbone: str) -> None:
    """Write the method's whole state; `encoder`: state-dict prefix of the network to evaluate, e.g. `backbone.`."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in method.state_dict().items()}
    about = json.dumps({"backbone": backbone, "encoder": encoder, "format": 1}, sort_keys=True)
    write_bytes(path, save(tensors, metadata={METADATA: about}))
