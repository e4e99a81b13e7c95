"""Factors on the losses of labels by their modality, exact under megatron-core's division by the number of labels.

Where a stage's `loss_weights` give label i of the global batch the factor w_i, its step descends

    sum_i w_i * loss_i / sum_i w_i

a weighted mean: only the ratios of the factors count, and the gradient keeps the scale of a mean over labels, whatever the
factors and however many labels of each modality a batch has. Divided by the plain number of labels instead, a factor would
also be a factor on the learning rate where the optimiser or the clipping of gradients sees their scale, and another one in
each batch. All factors 1 is the plain mean over labels.

megatron-core sums the losses of micro-batches and divides the gradients at the end by a number of labels that it counts as
integers. So the sum of factors is kept aside (`LabelWeights.total`), and `Engine` hands it over in that number's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.errors import ConfigError
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_IMAGE, MODALITY_TEXT

#: the modalities that labels have, as configurations and reports name them
MODALITIES = {"text": MODALITY_TEXT, "caption": MODALITY_CAPTION}


class LabelWeights:
    """The factors of one step, and their sum over the labels that this rank has seen of it.

    Raises:
        ConfigError: a modality that labels do not have, or a factor below 0.
    """

    def __init__(self, weights: Mapping[str, float], device: torch.device) -> None:
        factors = torch.ones(1 + max(*MODALITIES.values(), MODALITY_IMAGE))
        for name, weight in weights.items():
            if name not in MODALITIES or not weight >= 0:
                known = ", ".join(MODALITIES)
                raise ConfigError(f"curriculum loss_weights.{name}: {weight:g}: factors of at least 0 for {known}")
            factors[MODALITIES[name]] = weight
        self._factors = factors.to(device)
        #: fp64; what the gradients are divided by, summed over ranks
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    @classmethod
    def of(cls, weights: Mapping[str, float], device: torch.device) -> LabelWeights | None:
        """None where every factor is 1: the plain mean then keeps its bits."""
        return None if all(weight == 1 for weight in weights.values()) else cls(weights, device)

    def count(self, batch: MicroBatch) -> Tensor:
        """The factor of each label, fp32 `[1, t]`, 0 where none is learnt; they are added to `total`."""
        factors = self._factors[batch.label_modality.long()] * batch.loss_mask
        self.total += factors.sum(dtype=torch.float64)
        return factors
