"""Activation checkpointing: the same numbers to the last bit, far fewer bytes kept, and nothing else changes."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from dwtriton import build_detector
from dwtriton.config.schema import BackboneConfig, HeadConfig
from dwtriton.core.errors import UserError
from dwtriton.model.backbone import ResNet
from dwtriton.model.deformable import DeformableConv2d
from dwtriton.model.head import DenseHead


@pytest.fixture
def make(small_config):
    def build(recompute: bool, **sections: dict) -> nn.Module:
        torch.manual_seed(0)
        return randomise_offsets(
            build_detector(small_config(train={"activation_checkpointing": recompute}, **sections))
        )

    return build


def randomise_offsets(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, DeformableConv2d):
            nn.init.normal_(part.conv_offset.weight, std=0.02)
    return module


def images(size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def losses_and_gradients(detector: nn.Module, autocast: bool) -> dict[str, Tensor]:
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 60, 50], [30, 10, 90, 60]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = detector(images(), targets)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"backbone": {"frozen_stages": 0}, "head": {"convs": 0}},
        {"backbone": {"frozen_stages": 4}},
        {"backbone": {"frozen_stages": 2, "depth": 50, "deformable": True}, "head": {"deformable": True}},
        {
            "backbone": {"depth": 50, "deformable": True},
            "head": {"deformable": True, "refine": True, "convs": 2},
        },
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_and_gradients_are_the_same_bits(make, sections, autocast):
    plain, recomputed = (losses_and_gradients(make(recompute, **sections), autocast) for recompute in (False, True))
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(value, recomputed[name]) for name, value in plain.items())


def small_backbone(recompute: bool) -> nn.Module:
    return ResNet(BackboneConfig(depth=18), recompute)


def small_head(recompute: bool) -> nn.Module:
    cfg = HeadConfig(num_classes=3, channels=16, convs=2, groups=4, refine=True, deformable=True)
    return DenseHead(cfg, (8, 16), recompute)


@pytest.mark.parametrize(
    ("part", "inputs", "autocast"),
    [
        (small_backbone, torch.randn(2, 3, 32, 64), True),
        (small_head, [torch.randn(2, 16, 5, 8), torch.randn(2, 16, 3, 4)], False),
        (small_head, [torch.randn(2, 16, 5, 8), torch.randn(2, 16, 3, 4)], True),
    ],
)
def test_graphs_of_one_piece_give_the_same_bits(part, inputs, autocast):
    torch.manual_seed(0)
    weights = randomise_offsets(part(False)).state_dict()
    results = []
    for recompute in (False, True):
        module = part(recompute)
        module.load_state_dict(weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = torch.compile(module, backend="aot_eager", fullgraph=True)(inputs)
        outputs = torch.utils._pytree.tree_leaves(outputs)
        sum(output.float().square().mean() for output in outputs).backward()
        results.append(outputs + [p.grad for p in module.parameters() if p.grad is not None])
        torch._dynamo.reset()
    assert len(results[0]) > 30
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def kept_bytes(module: nn.Module, x: Tensor | list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `module(x)`, parameters and buffers apart."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept.add(self)

    kept = weakref.WeakSet()
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda saved: saved.tensor):
        outputs = module(x)  # noqa: F841 - what it holds is counted
        storages = {k.tensor.untyped_storage().data_ptr(): k.tensor.untyped_storage().nbytes() for k in kept}
    for tensor in (*module.parameters(), *module.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize(("frozen_stages", "blocks_of"), [(1, ["layer2", "layer3", "layer4"]), (3, ["layer4"])])
def test_of_the_backbone_only_the_inputs_of_trained_blocks_are_kept(frozen_stages, blocks_of):
    cfg = BackboneConfig(depth=50, weights="none", frozen_stages=frozen_stages)
    plain, recomputed = ResNet(cfg), ResNet(cfg, checkpointing=True)
    kept = kept_bytes(recomputed, images())
    assert 3 * kept <= kept_bytes(plain, images())  # widths in a bottleneck: 4 at its input, 1 1 1 1 4 inside
    inputs = []
    for block in (block for stage in blocks_of for block in plain.get_submodule(stage)):
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0].nbytes))
    plain(images())
    assert kept == sum(inputs)


def test_of_the_head_little_more_than_inputs_and_outputs_of_the_towers_is_kept():
    cfg = HeadConfig(num_classes=3, channels=32, convs=4, groups=4)
    plain, recomputed = DenseHead(cfg), DenseHead(cfg, checkpointing=True)
    features = [torch.randn(2, 32, 64 // 2**level, 64 // 2**level, requires_grad=True) for level in range(5)]
    of_inputs = sum(feature.nbytes for feature in features)
    kept = kept_bytes(recomputed, features)
    assert 3 * of_inputs < kept < 3.5 * of_inputs  # one input and two outputs, and the maps of the boxes
    assert kept_bytes(plain, features) > 5 * kept


@pytest.mark.parametrize("recompute", [False, True])
def test_the_config_reaches_backbone_and_head(make, recompute):
    detector = make(recompute)
    assert (detector.backbone.checkpointing, detector.head.checkpointing) == (recompute, recompute)


@torch.no_grad()
def test_nothing_is_recomputed_without_gradients_or_in_evaluation_mode(make, monkeypatch):
    detector = make(True)
    detector.head_outputs(images())
    monkeypatch.setattr("dwtriton.model.activation_checkpointing.checkpoint", None)
    detector.eval().head_outputs(images())
    detector.predict(images(), [(64, 96)] * 2)


def test_batch_norms_that_would_count_every_image_twice_are_refused():
    with pytest.raises(UserError, match=r"backbone\.frozen_statistics=true or train\.activation_checkpointing=false"):
        ResNet(BackboneConfig(depth=18, frozen_statistics=False), checkpointing=True)
