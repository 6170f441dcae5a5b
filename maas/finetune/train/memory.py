"""Whether activations must be computed twice: when keeping them would not fit.

A transformer block keeps about 34 values a token and hidden unit for its backward pass when it
is computed in two bytes (Korthikanti et al. 2022, equation 1: 34 s b h bytes, without the
attention's scores, which are never kept), in the width of the training dtype.
"""

import ctypes
import sys

import psutil
import torch

from maas.finetune.train.model import TrainedModel

_BYTES_PER_UNIT_IN_BF16 = 34
# The rest is for serving, and for what was not counted.
_SHARE = 0.5


# mallopt's names for what it sets.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_HELD_BYTES = 2**31 - 1


def hold_freed_memory() -> None:
    """Keep freed activations for the next layer: else each is paged in anew, an eighth of a step.

    Of GNU's C library; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_HELD_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _MAX_HELD_BYTES)


def activation_bytes(
    *, num_layers: int, hidden_size: int, num_tokens: int, dtype: torch.dtype
) -> int:
    """Return the memory of all blocks' activations for one pass, in bytes."""
    width = dtype.itemsize / 2
    return int(_BYTES_PER_UNIT_IN_BF16 * width * num_layers * hidden_size * num_tokens)


def must_recompute(model: TrainedModel, num_tokens: int) -> bool:
    """Say whether a pass of so many tokens would not fit with its activations kept."""
    config = model.module.config
    needed = activation_bytes(
        num_layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        num_tokens=num_tokens,
        dtype=model.dtype,
    )
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = psutil.virtual_memory().available
    return needed > free * _SHARE
