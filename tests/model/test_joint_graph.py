"""What a compiled training step does on a GPU, read from its graph on fake CUDA tensors."""

from unittest import mock

import pytest
import torch
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.joint_graph import convolution_inputs, joint_graph, kept
from dwtriton import build_detector, reference
from dwtriton.config.load import load_config
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
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


def assert_fits_a_cuda_graph(module: GraphModule):
    """By PyTorch's own rule; and nothing lies on the CPU, for which it would cut the graph in parts."""
    assert get_first_incompatible_cudagraph_node(module) is None
    values = [node.meta["val"] for node in module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert len(values) > 1
    assert {value.device.type for value in values} == {"cuda"}


def test_forward_and_backward_pass_fit_a_cuda_graph(module):
    assert_fits_a_cuda_graph(module)


def traced_loss(backend) -> GraphModule:
    """The forward pass of `backend.dual_weight_losses` on targets of a fixed number of rows, as it is compiled."""

    def losses(*tensors):
        outputs, targets = HeadOutputs(*(tensors[2 * i : 2 * i + 2] for i in range(3))), PackedTargets(*tensors[6:])
        return backend.dual_weight_losses(outputs, targets, STRIDES[:2], True, None)

    with FakeTensorMode(), mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        levels = [torch.empty(2, c, 8 // s, 12 // s, device="cuda").half() for c in (3, 4, 1) for s in (1, 2)]
        dtypes = (torch.float32, (9, 4)), (torch.int64, (9,)), (torch.int32, (3,)), (torch.bool, (9,))
        targets = [torch.empty(shape, dtype=dtype, device="cuda") for dtype, shape in dtypes]
        return make_fx(losses)(*levels, *targets)


def test_the_loss_fits_a_cuda_graph_and_its_form_in_pytorch_is_left_out_of_it():
    """The latter reads numbers of pairs on the host, which a recording does not allow."""
    kernels = pytest.importorskip("dwtriton.kernels", exc_type=ImportError)
    assert_fits_a_cuda_graph(traced_loss(kernels))
    unsafe = get_first_incompatible_cudagraph_node(traced_loss(reference))
    assert unsafe.target == torch.ops.dwtriton.dual_weight_reference_sums.default
