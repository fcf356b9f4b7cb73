"""dwtriton: Dual Weighting label assignment for dense object detectors."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors
    from dwtriton.config.load import load_config as load_config
    from dwtriton.core.targets import PackedTargets as PackedTargets
    from dwtriton.core.targets import pack_targets as pack_targets
    from dwtriton.inference.ready import load_detector as load_detector
    from dwtriton.losses.dual_weight import DualWeightAssigner as DualWeightAssigner
    from dwtriton.losses.dual_weight import DualWeightLoss as DualWeightLoss
    from dwtriton.model.detector import build_detector as build_detector
    from dwtriton.model.postprocess import postprocess as postprocess
    from dwtriton.reference.dense_weights import DualWeights as DualWeights

    __version__: str

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
__all__ = ["__version__", *_MODULES]

if os.path.basename(sys.argv[0]) in ("-m", "dwtriton"):  # a command, `python -m dwtriton.NAME`, that begins to import
    end_on_signals()


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, so that the loss needs neither torchvision nor pydantic."""
    if name == "__version__":
        return import_module("importlib.metadata").version("dwtriton")
    if name not in _MODULES:
        raise AttributeError(f"module 'dwtriton' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion in consoles."""
    return __all__
