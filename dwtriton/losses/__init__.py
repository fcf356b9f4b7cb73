"""Losses of dense detectors, each from the head's outputs and the targets of a batch to named scalars."""

from dwtriton.losses.atss import ATSSLoss
from dwtriton.losses.dual_weight import DualWeightAblationLoss, DualWeightAssigner, DualWeightLoss
from dwtriton.losses.fcos import FCOSLoss
from dwtriton.losses.point_loss import Assignment, PointLoss
from dwtriton.losses.simota import SimOTALoss
from dwtriton.losses.task_aligned import TaskAlignedLoss

__all__ = [
    "ATSSLoss",
    "Assignment",
    "DualWeightAblationLoss",
    "DualWeightAssigner",
    "DualWeightLoss",
    "FCOSLoss",
    "PointLoss",
    "SimOTALoss",
    "TaskAlignedLoss",
]
