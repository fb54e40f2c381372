"""The checkpoint: every tensor of the method in one safetensors file, with one metadata key.

safetensors writes several keys in random order, and the file's bytes must be reproducible.
"""

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
