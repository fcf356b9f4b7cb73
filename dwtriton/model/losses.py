"""The loss that a config names, and the scores that its detector is to give."""

from torch import nn

from dwtriton.config.schema import LossConfig
from dwtriton.core.points import STRIDES
from dwtriton.losses import ATSSLoss, DualWeightAblationLoss, DualWeightLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss
from dwtriton.model.postprocess import Score

LOSSES = {
    "fcos": FCOSLoss,
    "atss": ATSSLoss,
    "simota": SimOTALoss,
    "tal": TaskAlignedLoss,
    "dual_weight_ablation": DualWeightAblationLoss,
}
SCORES: dict[str, Score] = {  # of a class at a point, as each method trains the two branches
    "dual_weight": "product",
    "fcos": "root",
    "atss": "root",
    "simota": "product",
    "tal": "class",
    "dual_weight_ablation": "product",
}


def build_loss(cfg: LossConfig, strides: tuple[int, ...] = STRIDES) -> nn.Module:
    """Return the loss of `cfg.assigner` on levels of these strides, with the settings of its section."""
    if cfg.assigner == "dual_weight":
        return DualWeightLoss(strides, soft_prior=cfg.soft_prior, backend=cfg.backend)
    return LOSSES[cfg.assigner](strides, **getattr(cfg, cfg.assigner).model_dump())
