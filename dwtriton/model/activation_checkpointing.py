"""Activation checkpointing: less memory for more time."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """Return `module(x)`; with `checkpointing` only x is kept and the backward pass recomputes the rest.

    The module must be deterministic and have no state that changes, since it runs twice.
    """
    return checkpoint(module, x, use_reentrant=False, preserve_rng_state=False) if checkpointing else module(x)
