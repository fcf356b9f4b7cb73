"""ResNet backbone: torchvision's network up to layer4 with variants, frozen parts and pretrained weights."""

import re
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torchvision
from torch import Tensor, nn

from dwtriton.config.schema import BackboneConfig
from dwtriton.core.errors import UserError
from dwtriton.model.activation_checkpointing import run
from dwtriton.model.deformable import DeformableConv2d
from dwtriton.model.residual import BasicBlock, Bottleneck, conv_norm
from dwtriton.model.state_dict import check_tensors, read_torch_file

STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # of the stages, by depth
OPTIONAL_TENSORS = re.compile(r"num_batches_tracked$|\.conv_offset\.")  # which a file of weights may lack
REMEDY = "--set backbone.weights=FILE takes a torchvision ResNet state dict, backbone.weights=none trains from scratch"


class ResNet(nn.Module):
    """ResNet-18/34/50/101 (He et al., arXiv 1512.03385) in torchvision's layout: stride on the 3x3 convolution.

    `cfg.resnext` makes it a ResNeXt (Xie et al., arXiv 1611.05431). `cfg.deformable` makes the 3x3 convolutions of
    layer2 to layer4 deformable. With `checkpointing` only the inputs of blocks are kept for the backward pass.
    With `c2` the output of layer1 is returned, too.

    The parts frozen by `cfg.frozen_stages` (1: stem and layer1; n: up to layer n) do not train, and their batch norms
    always use stored statistics. With `cfg.frozen_statistics` all batch norms do, while the affine parameters of the
    other parts still train.
    Raises UserError for settings that do not fit together.
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.ReLU
    maxpool: nn.MaxPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, cfg: BackboneConfig, checkpointing: bool = False, c2: bool = False) -> None:
        super().__init__()
        if checkpointing and not cfg.frozen_statistics:
            raise UserError(
                "train.activation_checkpointing runs every batch norm twice, so its statistics would be updated twice: "
                "set backbone.frozen_statistics=true or train.activation_checkpointing=false"
            )
        network = _network(cfg)
        for name in ("conv1", "bn1", "relu", "maxpool", *STAGES):
            setattr(self, name, getattr(network, name))
        self.cfg, self.checkpointing, self.c2 = cfg, checkpointing, c2
        for stage in (self.layer2, self.layer3, self.layer4) if cfg.deformable else ():
            for block in stage:
                if not isinstance(block, Bottleneck):
                    raise UserError(
                        f"backbone.deformable = true needs bottleneck blocks, which backbone.depth = {cfg.depth} "
                        f"does not have: set backbone.depth to 50 or 101"
                    )
                block.conv2 = DeformableConv2d.like(block.conv2)
        self.out_channels = [network.fc.in_features // share for share in (8, 4, 2, 1)[not c2 :]]
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to {"c3": [B, c, H/8, W/8], "c4": .../16, "c5": .../32}, c from `out_channels`.

        If the network was made with `c2`, {"c2": [B, c, H/4, W/4]} comes before them.
        """
        x = self.maxpool(self.relu(conv_norm(self.conv1, self.bn1, images)))
        c2 = self._run(self.layer1, x)
        c3 = self._run(self.layer2, c2)
        c4 = self._run(self.layer3, c3)
        levels = {"c3": c3, "c4": c4, "c5": self._run(self.layer4, c4)}
        return {"c2": c2} | levels if self.c2 else levels

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen batch norms use stored statistics in both."""
        super().train(mode)
        for part in [self] if self.cfg.frozen_statistics else self._frozen_parts():
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            x = run(block, x, self.checkpointing and self.training)
        return x

    def _frozen_parts(self) -> list[nn.Module]:
        frozen = self.cfg.frozen_stages
        return [self.conv1, self.bn1, *(getattr(self, stage) for stage in STAGES[:frozen])] if frozen else []


class LoadedWeights(NamedTuple):
    """Names of tensors: loaded from the file, fresh because the file lacks them, and ignored in the file."""

    loaded: list[str]
    fresh: list[str]
    ignored: list[str]


def load_backbone_weights(backbone: ResNet, weights: str) -> LoadedWeights:
    """Load pretrained weights into `backbone`, in place.

    weights: "IMAGENET1K_V1" (torchvision's, downloaded once into torch's hub cache), the path of a torchvision ResNet
    state dict, or "none" (nothing is loaded). The classifier `fc.*` is ignored. A state dict may lack the counters
    `num_batches_tracked`, which older files lack and nothing here reads, and the offsets `conv_offset.*` of deformable
    convolutions, which then stay as they are.
    Raises UserError if the download fails, if the file is missing or unreadable, or if tensors do not fit (it lists
    all of them).
    """
    own = backbone.state_dict()
    if weights == "none":
        return LoadedWeights([], list(own), [])
    name = _network_name(backbone.cfg)
    if weights == "IMAGENET1K_V1":
        state = _download(torchvision.models.get_model_weights(name).IMAGENET1K_V1)
    else:
        state = read_torch_file(Path(weights), "the file of backbone weights", f"; {REMEDY}")
        if not isinstance(state, dict):
            found = type(state).__name__
            raise UserError(f"backbone weights {weights} hold a {found}, not a dict of tensors; {REMEDY}")
    loaded = {key: value for key, value in state.items() if not key.startswith("fc.")}
    fresh = {key: value for key, value in own.items() if OPTIONAL_TENSORS.search(key) and key not in loaded}
    check_tensors(own, loaded | fresh, f"backbone weights {weights} for {name}")
    backbone.load_state_dict(loaded | fresh)
    return LoadedWeights(list(loaded), list(fresh), [key for key in state if key not in loaded])


def _network(cfg: BackboneConfig) -> torchvision.models.ResNet:
    """Return torchvision's network of our blocks. Raises UserError if torchvision does not have it."""
    _network_name(cfg)
    groups, width = (1, 64) if cfg.resnext == "none" else map(int, re.findall(r"\d+", cfg.resnext))
    block = Bottleneck if cfg.depth >= 50 else BasicBlock
    return torchvision.models.ResNet(block, BLOCKS[cfg.depth], groups=groups, width_per_group=width)


def _network_name(cfg: BackboneConfig) -> str:
    """Return torchvision's name of the network. Raises UserError if torchvision does not have it."""
    if cfg.resnext == "none":
        return f"resnet{cfg.depth}"
    name = f"resnext{cfg.depth}_{cfg.resnext}"
    existing = torchvision.models.list_models(include="resnext*")
    if name not in existing:
        raise UserError(
            f"backbone.depth = {cfg.depth} with backbone.resnext = {cfg.resnext} is {name}, which torchvision does not "
            f"have: it has {', '.join(existing)}"
        )
    return name


def _download(weights: torchvision.models.WeightsEnum) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"backbone weights {weights.name} could not be downloaded ({error}). Fetch {weights.url} by other means "
            f"and put it into {Path(torch.hub.get_dir(), 'checkpoints')}; or {REMEDY}"
        ) from error
