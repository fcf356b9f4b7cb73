"""What a compiled training step does on a GPU, read from its graph on fake CUDA tensors."""

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from benchmarks.joint_graph import convolution_inputs, joint_graph, kept
from dwtriton import build_detector
from dwtriton.config.load import load_config
from dwtriton.model.pixels import PixelDetector

SETTINGS = ["backbone.weights=none", "head.channels=16", "head.groups=4", "head.convs=1"]
BACKBONE = 17  # convolutions of a ResNet-50 with one block a stage, 5 of them frozen
FPN, LEVELS, HEAD = 8, 5, 5  # convolutions of the pyramid; the head's on each of its levels: towers and predictions


@pytest.fixture(scope="module")
def module() -> GraphModule:
    """All layers of r50_1x, but only one block a stage and narrow towers of one convolution."""
    cfg = load_config("r50_1x", SETTINGS)
    detector = build_detector(cfg)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(detector.backbone, stage, getattr(detector.backbone, stage)[:1])
    return joint_graph(PixelDetector(detector.to(memory_format=torch.channels_last).train(), cfg.data), (64, 96))


@pytest.fixture(scope="module")
def graph(module) -> Graph:
    return module.graph


def called(graph: Graph, *names: str) -> list[Node]:
    """The nodes whose operation has one of these names in its own."""
    return [node for node in graph.nodes if node.op == "call_function" and any(n in str(node.target) for n in names)]


def test_every_tensor_that_enters_a_convolution_is_channels_last(graph):
    inputs = convolution_inputs(graph)
    forward, backward = BACKBONE + FPN + LEVELS * HEAD, BACKBONE - 5 + FPN + LEVELS * HEAD
    assert len(inputs) == 2 * forward + 3 * backward
    other = [node for node, tensor in inputs if not tensor.is_contiguous(memory_format=torch.channels_last)]
    assert not other


def test_nothing_is_copied_to_another_layout(graph):
    for node in called(graph, "aten.clone", "aten._to_copy"):
        before, after = node.args[0].meta["val"], node.meta["val"]
        assert after.ndim < 4 or after.stride() == before.stride(), node


def test_frozen_parts_have_no_backward_pass(graph):
    backward = called(graph, "convolution_backward")
    assert len(backward) == BACKBONE - 5 + FPN + LEVELS * HEAD
    without_input_gradient = [node for node in backward if not node.args[-1][0]]
    assert len(without_input_gradient) == 2  # layer2's first convolution and its shortcut, which read layer1's result


def test_batch_norms_are_folded_and_what_convolutions_of_the_backbone_return_is_not_kept(module, graph):
    assert not called(graph, "batch_norm")
    convolutions = {node.name for node in called(graph, "aten.convolution.default")[:BACKBONE]}
    kept_names = {node.name for node in kept(module, outputs=3 * LEVELS)}
    assert len(kept_names) > BACKBONE - 5  # results of ReLUs among them
    assert not kept_names & convolutions
