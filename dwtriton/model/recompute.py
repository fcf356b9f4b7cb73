"""Activation checkpointing: less memory for more time."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """`module(x)`; with `recompute` only x is kept of it, and the backward pass computes the rest again.

    The module must be deterministic and change no state of its own: it runs twice.
    """
    return checkpoint(module, x, use_reentrant=False, preserve_rng_state=False) if recompute else module(x)
