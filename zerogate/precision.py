"""Which device computes, and which numbers it multiplies fastest without losing what counts."""

from typing import Literal

import torch

Dtype = Literal["float32", "bfloat16"]


def best_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> Dtype:
    """`bfloat16` where the hardware multiplies it natively (CUDA since Ampere, AVX512-BF16 or AMX), else `float32`."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"  # noqa: SLF001 (no public name)
