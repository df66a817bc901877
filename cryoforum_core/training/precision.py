"""In which precision encoders are trained."""

import functools
from contextlib import AbstractContextManager
from pathlib import Path

import torch

_PROCESSOR = Path("/proc/cpuinfo")


def mixed_precision(device: torch.device, name: str = "auto") -> AbstractContextManager:
    """Autocast of an encoder's forward pass to bfloat16.

    ``name``: "bfloat16", "float32" (no autocast), or "auto": bfloat16 on GPUs, and on CPUs that multiply it; elsewhere it
    is slower than float32. Weights, their updates, heads and losses stay in float32.
    """
    wanted = name == "bfloat16"
    if name == "auto":
        wanted = device.type == "cuda" or (device.type == "cpu" and multiplies_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has units for products of bfloat16 matrices (AMX), as Linux says."""
    try:
        return "amx_bf16" in _PROCESSOR.read_text().split()
    except OSError:
        return False
