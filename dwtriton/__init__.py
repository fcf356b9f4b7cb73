"""dwtriton: Dual Weighting label assignment for dense object detectors."""

import os
import sys
from importlib import import_module
from typing import Any

from dwtriton.core.interruption import end_on_signals

_MODULES = {
    "DualWeightAssigner": "dwtriton.losses.dual_weight",
    "DualWeightLoss": "dwtriton.losses.dual_weight",
    "DualWeights": "dwtriton.reference.dense_weights",
    "PackedTargets": "dwtriton.core.targets",
    "build_detector": "dwtriton.model.detector",
    "load_config": "dwtriton.config.load",
    "load_detector": "dwtriton.inference.ready",
    "pack_targets": "dwtriton.core.targets",
    "postprocess": "dwtriton.model.postprocess",
}
__all__ = list(_MODULES)

if os.path.basename(sys.argv[0]) in ("-m", "dwtriton"):  # a command, `python -m dwtriton.NAME`, that begins to import
    end_on_signals()


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, so that the loss needs neither torchvision nor pydantic."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dwtriton' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion in consoles."""
    return __all__
