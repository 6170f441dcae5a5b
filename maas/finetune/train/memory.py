"""Whether activations must be computed twice: when keeping them would not fit.

A transformer block keeps about 34 values a token and hidden unit for its backward pass when it
is computed in two bytes (Korthikanti et al. 2022, equation 1: 34 s b h bytes, without the
attention's scores, which are never kept), in the width of the training dtype.
"""

import psutil
import torch

from maas.finetune.train.model import TrainedModel

_BYTES_PER_UNIT_IN_BF16 = 34
# The rest is for serving, and for what was not counted.
_SHARE = 0.5


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
