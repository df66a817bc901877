"""In which precision encoders are trained."""

from contextlib import AbstractContextManager

import torch


def mixed_precision(device: torch.device, name: str = "auto") -> AbstractContextManager:
    """Autocast of an encoder's forward pass to bfloat16.

    ``name``: "bfloat16", "float32" (no autocast), or "auto": bfloat16 on GPUs alone, for on a CPU it cost more than it gained
    (``docs/decisions.md``, Encoder). Weights, their updates, heads and losses stay in float32.
    """
    wanted = device.type == "cuda" if name == "auto" else name == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
