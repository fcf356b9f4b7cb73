"""Full-size weights by the rule of tests/golden/README.md, section model."""

import zlib

import numpy as np
import torch


def generate_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
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
