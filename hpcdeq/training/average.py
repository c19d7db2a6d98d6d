"""The running average of a model's weights, which is often better than the last of them."""

from __future__ import annotations

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from hpcdeq.models import SparseDenoiser


def average_of(model: SparseDenoiser, decay: float) -> AveragedModel:
    """Return a copy of a model that follows it: call ``update_parameters`` after each of its steps.

    The decay grows to ``decay`` as steps are taken, so that the first weights are soon forgotten.
    """

    def follow(average: Tensor, weight: Tensor, steps: Tensor | int) -> Tensor:
        count = float(steps)
        return average.lerp(weight, 1.0 - min(decay, (1.0 + count) / (10.0 + count)))

    return AveragedModel(model, avg_fn=follow)
