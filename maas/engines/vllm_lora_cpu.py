"""How vLLM applies LoRA adapters on processors here.

vLLM 0.32's own way (``PunicaWrapperCPU``) copies an adapter's matrices once for every token, so
eight adapters in a batch halve its throughput; and a request of the base beside one of an adapter
is given the weights of the last slot, as its index of "none", -1, is taken for a position: the
base then answers as somebody's adapter does. ``maas.engines.lora_groups`` does neither.
docs/adr/0010 has the measurements.

Imported inside the engine's process only, by name, as ``maas.engines.vllm_server`` tells it.
"""

from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from maas.engines.lora_groups import Groups, apply_slices, group


class GroupedLora(PunicaWrapperCPU):
    """Applies adapters to the linear layers, a group of tokens at a time.

    The embedding and the head are left out at the start (``--lora-target-modules``).
    """

    _groups: Groups | None = None

    def update_metadata(self, mapping: LoRAMapping, *args: Any, **kwargs: Any) -> None:
        """Take which adapter each token of the next step has."""
        super().update_metadata(mapping, *args, **kwargs)
        self._groups = group(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add what adapters change of one linear layer's output, in place.

        Args:
            y: The layer's output ``[num_tokens, sum(output_slices)]``.
            x: Its input ``[num_tokens, in]``.
            lora_a_stacked: For each slice ``[num_slots, 1, r, in]``.
            lora_b_stacked: For each slice ``[num_slots, 1, out, r]``.
            scale: Factor of the change; adapters have theirs in B already.
            output_slices: Widths of the slices.
        """
        if self._groups is None:
            return
        x = x.view(-1, x.shape[-1])
        apply_slices(
            y.view(-1, y.shape[-1]),
            x if scale == 1.0 else x * scale,
            (lora_a_stacked, lora_b_stacked),
            output_slices,
            self._groups,
        )
