"""dwtriton: Dual Weighting label assignment for dense object detectors."""

from importlib import import_module
from typing import Any

_HOMES = {
    "DualWeightAssigner": "dwtriton.losses.dual_weight",
    "DualWeightLoss": "dwtriton.losses.dual_weight",
    "DualWeights": "dwtriton.reference.dense_weights",
    "PackedTargets": "dwtriton.core.targets",
    "build_detector": "dwtriton.model.detector",
    "load_config": "dwtriton.config.schema",
    "load_detector": "dwtriton.inference.ready",
    "pack_targets": "dwtriton.core.targets",
    "postprocess": "dwtriton.model.postprocess",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use, so that the loss needs neither torchvision nor pydantic."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dwtriton' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
