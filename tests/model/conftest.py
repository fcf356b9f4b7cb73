"""What the model's tests share: golden files, small configs, generated full-size weights."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dwtriton.config.schema import Config

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """golden(name): the arrays of a golden .npz file."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def released_names() -> dict:
    """Names, shapes and initial statistics of the released models, by config name."""
    return json.loads((GOLDEN / "state_dict_names.json").read_text())


@pytest.fixture
def small_config():
    """small_config(section={...}): a ResNet-18 detector of 3 classes with narrow towers, changed by sections."""

    def make(**sections: dict) -> Config:
        values = {
            "backbone": {"depth": 18, "weights": "none"},
            "head": {"num_classes": 3, "channels": 16, "convs": 1, "groups": 4},
        }
        for section, changes in sections.items():
            values[section] = values.get(section, {}) | changes
        return Config.model_validate(values)

    return make


@pytest.fixture(scope="session")
def generated_weights(released_names):
    """generated_weights(config name, seed): MMDetection state dict by the rule in golden/README.md, section model."""

    def make(config: str, seed: int) -> dict[str, torch.Tensor]:
        return {
            entry["name"]: _generate(entry["name"], tuple(entry["shape"]), seed)
            for entry in released_names[config]["entries"]
        }

    return make


@pytest.fixture(scope="session")
def sampled():
    """sampled(map [H, W], row, column): its bilinear value at a fractional cell, zero outside."""

    def value(image: np.ndarray, row: float, column: float) -> float:
        total = 0.0
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(column), math.floor(column) + 1):
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    total += image[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
        return total

    return value


def _generate(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return torch.tensor(7)
    if "center_prior" in name:
        values = np.full(shape, 0.0 if kind == "mean" else 1.11)
    elif kind == "scale":
        values = np.asarray(1 + 0.1 * random.standard_normal())
    elif kind == "running_mean":
        values = 0.1 * random.standard_normal(shape)
    elif kind == "running_var":
        values = 0.8 + 0.4 * random.random_sample(shape)
    elif len(shape) == 4:
        values = random.standard_normal(shape) * _gain(name) * np.sqrt(2 / np.prod(shape[1:]))
    elif kind == "weight":
        values = (0.2 if ".bn3." in name else 0.7) + 0.3 * random.random_sample(shape)
    else:
        shift = {"bbox_head.conv_cls.bias": -3, "bbox_head.conv_reg.bias": 2}.get(name, 0)
        values = 0.1 * random.standard_normal(shape) + shift
    return torch.from_numpy(values.astype(np.float32))


def _gain(name: str) -> float:
    if any(part in name for part in ("conv_cls", "conv_reg", "conv_centerness")):
        return 0.5
    if "bbox_head.reg_offset" in name:
        return 0.3
    return 0.2 if "offset" in name else 1.0
