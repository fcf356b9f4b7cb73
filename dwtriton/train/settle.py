"""Settings that a config leaves to the machine and the data, settled before a run and recorded in its `config.toml`."""

import torch

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import training_buckets


def settle_for_device(cfg: Config, device: torch.device) -> Config:
    """Return the config with `train.precision` and `train.compile` for this device instead of auto.

    Raises UserError if the network is to be compiled for an unknown number of batch sizes, and for CUDA graphs without
    a GPU.
    """
    precision, mode, on_gpu = cfg.train.precision, cfg.train.compile, device.type == "cuda"
    if precision == "auto":
        amx = torch.cpu.get_capabilities().get("amx_bf16", False)
        multiplies_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else amx
        precision = "bfloat16" if multiplies_bfloat16 else "float32"
    if mode == "auto":
        mode = "default" if on_gpu else "off"  # on a CPU, compiling takes longer than it saves
    if mode != "off" and cfg.data.buckets == 0:
        raise UserError(
            "data.buckets = 0 lets a batch have any size, and torch.compile makes a graph for each: set data.buckets "
            "to a number, or train.compile = off"
        )
    if mode == "reduce-overhead" and not on_gpu:
        raise UserError(
            "train.compile = reduce-overhead records CUDA graphs, and PyTorch finds no GPU: set train.compile = "
            "default, which compiles the same network, or off"
        )
    return override_config(cfg, [f"train.precision={precision}", f"train.compile={mode}"])


def settle_buckets(cfg: Config, train_set: CocoDataset) -> Config:
    """Return the config with `data.buckets` as sizes. Raises UserError if those of the config do not fit the data."""
    buckets = training_buckets(train_set, cfg)
    return override_config(cfg, [f"data.buckets={[list(bucket) for bucket in buckets]}"]) if buckets else cfg
