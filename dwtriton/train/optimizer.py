"""Optimiser, parameter groups and learning rate of the recipe (docs/recipe.md#optimiser)."""

import math

import torch
from torch import nn

from dwtriton.config.fit import WARMUP_SHARE
from dwtriton.config.schema import OptimizerConfig, ScheduleConfig
from dwtriton.core.errors import UserError

REFERENCE_BATCH = 16  # images, for which `optimizer.lr` holds
NORMS = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def build_optimizer(model: nn.Module, cfg: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters, in two groups: with weight decay, and without (norms).

    The learning rate is `cfg.lr * batch_size / 16`; each group keeps it as `initial_lr`.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    lr = cfg.lr * batch_size / REFERENCE_BATCH
    groups = [
        {"params": [p for p in trainable if id(p) not in norms], "weight_decay": cfg.weight_decay, "initial_lr": lr},
        {"params": [p for p in trainable if id(p) in norms], "weight_decay": 0.0, "initial_lr": lr},
    ]
    if cfg.kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=cfg.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def lr_factor(iteration: int, cfg: ScheduleConfig, iterations_per_epoch: int) -> float:
    """Return the factor of the learning rate at 0-based `iteration`: linear warm-up times steps or a half cosine.

    Without state of its own, as torch.optim.lr_scheduler has, a resumed run needs nothing but the iteration.
    """
    if cfg.kind == "step":
        epoch = iteration // iterations_per_epoch
        factor = cfg.gamma ** sum(epoch >= milestone for milestone in cfg.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * iteration / (cfg.epochs * iterations_per_epoch)))
    if iteration < cfg.warmup_iterations:
        factor *= 1 - (1 - iteration / cfg.warmup_iterations) * (1 - cfg.warmup_start)
    return factor


def check_warmup(cfg: ScheduleConfig, iterations: int) -> str | None:
    """Return a warning if the warm-up takes more than a tenth of a run. Raises UserError if the run ends within it."""
    tenth = max(1, int(WARMUP_SHARE * iterations))
    takes = f"schedule.warmup_iterations = {cfg.warmup_iterations}, and the run has {iterations} iterations"
    remedy = f"--set schedule.warmup_iterations={tenth}, or more epochs"
    if cfg.warmup_iterations >= iterations:
        raise UserError(f"{takes}: its learning rate would never leave the warm-up. Use {remedy}")
    return f"{takes}: a tenth is usual, {remedy}" if cfg.warmup_iterations > tenth else None


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of all groups to `factor` times the initial one and return it."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optimizer.param_groups[0]["lr"]
