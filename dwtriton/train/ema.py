"""A moving average of a module's weights and statistics."""

import copy

import torch
from torch import nn


class EMA:
    """`module` holds the average; its decay rises from 0, where it begins, to `decay`: first weights are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.updates = 0  # so far

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's tensors in; counters of batches are copied. On a GPU the host waits for nothing."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*averaged)), 1 - decay)
        for average, counter in counters:
            average.copy_(counter)
        self.updates += 1
