"""In which precision encoders are trained."""

from contextlib import AbstractContextManager

import torch


def mixed_precision(device: torch.device, name: str = "auto") -> AbstractContextManager:
    """Autocast of an encoder's forward pass to bfloat16.

    ``name``: "bfloat16", "float32" (no autocast), or "auto": bfloat16 where the machine multiplies matrices of it, on
    GPUs and on CPUs with AMX (there a training step takes two thirds of its time; ``docs/decisions.md``, Encoder).
    Weights, their updates, heads and losses stay in float32.
    """
    wanted = has_fast_bfloat16(device) if name == "auto" else name == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the machine has units that multiply matrices of bfloat16."""
    if device.type != "cpu":
        return device.type == "cuda"
    # older releases of torch do not tell
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))
