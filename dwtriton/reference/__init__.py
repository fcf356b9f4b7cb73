"""The method in plain PyTorch: formulas, pairs of boxes and points, the loss, the dense weights."""

from dwtriton.reference.dense_weights import dual_weights
from dwtriton.reference.loss import dual_weight_losses, dual_weight_sums

__all__ = ["dual_weight_losses", "dual_weight_sums", "dual_weights"]  # what a backend provides
