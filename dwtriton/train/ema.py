"""Exponential moving average (EMA) of a module's weights and buffers."""

import copy

import torch
from torch import nn


class EMA:
    """Exponential moving average of a module, kept in `module`.

    The decay warms up from 0 to `decay`, so early weights drop out quickly. torch.optim.swa_utils.AveragedModel has no
    warm-up, averages integer counters too, and copies a counter to the device at every update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = copy.deepcopy(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average the model's tensors in; integer counters are copied. The host does not wait for the GPU."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*floats)), 1 - decay)
        for own, counter in pairs:
            if not own.is_floating_point():
                own.copy_(counter)
        self.updates += 1
