"""Mixed precision: where encoders are trained in bfloat16."""

import functools
from contextlib import AbstractContextManager
from pathlib import Path

import torch

# Linux's description of the CPU
_PROCESSOR = Path("/proc/cpuinfo")


def mixed_precision(device: torch.device, name: str = "auto") -> AbstractContextManager:
    """Autocast of an encoder's forward pass to bfloat16, where ``uses_bfloat16``. Weights, their updates, heads and losses
    stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device, name))


def uses_bfloat16(device: torch.device, name: str) -> bool:
    """``name``: "bfloat16", "float32", or "auto": on GPUs, and on CPUs that multiply it; elsewhere it is slower than
    float32."""
    if name == "auto":
        return device.type == "cuda" or (device.type == "cpu" and multiplies_bfloat16())
    return name == "bfloat16"


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has units for products of bfloat16 matrices (AMX), as Linux says."""
    try:
        return "amx_bf16" in _PROCESSOR.read_text().split()
    except OSError:
        return False
