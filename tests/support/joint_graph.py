"""The forward and backward pass of a detector as one graph, traced on fake CUDA tensors: no GPU is needed.

PyTorch's engine refuses to run backward for a device that is not there, so nodes are called here, in its order of
dependence. Graphs are those of float16: whether cuDNN computes in bfloat16, PyTorch asks the GPU.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from dwtriton.model.pixels import PixelDetector

DEVICE = "cuda"
CONVOLUTIONS = {torch.ops.aten.convolution.default: 2, torch.ops.aten.convolution_backward.default: 3}  # their tensors


def joint_graph(network: PixelDetector, size: tuple[int, int], images: int = 2) -> Graph:
    """Trace compiled training under float16 autocast, from uint8 images to gradients of all parameters that have one.

    The loss is left out: gradients of the head's outputs are given, in the layout that the loss's operator has.
    """
    with FakeTensorMode():
        state = {name: _fake(tensor) for name, tensor in (*network.named_parameters(), *network.named_buffers())}
        pixels = torch.empty(images, *size, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        sizes = torch.empty(images, 2, dtype=torch.int64, device=DEVICE)
        precision = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
        try:  # torch.autocast refuses a device that is not there
            torch.set_autocast_enabled(DEVICE, True)
            torch.set_autocast_dtype(DEVICE, torch.float16)
            with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
                graph = make_fx(_joint(network))(state, pixels, sizes).graph
        finally:
            torch.set_autocast_enabled(DEVICE, precision[0])
            torch.set_autocast_dtype(DEVICE, precision[1])
    graph.eliminate_dead_code()
    return graph


def convolution_inputs(graph: Graph) -> list[tuple[Node, Tensor]]:
    """Each tensor that enters a convolution or its backward pass, with the node that takes it."""
    return [
        (node, given.meta["val"])
        for node in graph.nodes
        for given in node.args[: CONVOLUTIONS.get(node.target, 0)]
        if isinstance(given, Node)
    ]


def kept(graph: Graph) -> list[Node]:
    """Results of the forward pass that the backward pass reads, one for each piece of memory."""
    nodes = list(graph.nodes)
    backward = next(i for i, node in enumerate(nodes) if node.target is torch.ops.aten.empty_like.default)
    forward = [node for node in nodes[:backward] if node.op != "placeholder"]
    later = {given for node in nodes[backward:] for given in node.all_input_nodes}
    found = {}
    for node in forward:
        if node in later and isinstance(node.meta["val"], Tensor):
            found.setdefault(node.meta["val"].untyped_storage()._cdata, node)
    return list(found.values())


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    return fake.requires_grad_(tensor.requires_grad)


def _joint(network: PixelDetector):
    class HeadOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]:
            return [level for kind in self.network.head_outputs(pixels, sizes) for level in kind]

    def run(state: dict[str, Tensor], pixels: Tensor, sizes: Tensor) -> list[Tensor]:
        given = {f"network.{name}": tensor for name, tensor in state.items()}
        return _gradients(torch.func.functional_call(HeadOutputs(), given, (pixels, sizes)))

    return run


def _gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of all leaves, as the engine computes them, for some gradients of `outputs`."""
    waiting, nodes = Counter(), [output.grad_fn for output in outputs]
    for node in nodes:
        for below, _ in node.next_functions:
            if below is not None:
                if below not in waiting and below not in nodes:
                    nodes.append(below)
                waiting[below] += 1
    grads = defaultdict(dict)
    for output in outputs:
        grads[output.grad_fn][output.output_nr] = torch.empty_like(output)
    ready, leaves = [node for node in nodes if not waiting[node]], []
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = [grads[node].get(i) for i in range(len(node._input_metadata))]
            if hasattr(node, "variable"):
                leaves += given
                continue
            call = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
            results = call(*given)
            for (below, i), grad in zip(node.next_functions, results if isinstance(results, tuple) else (results,)):
                if below is None:
                    continue
                if grad is not None:
                    like = below._input_metadata[i]
                    grad = grad.sum_to_size(like.shape).to(like.dtype)
                    grads[below][i] = grads[below][i] + grad if i in grads[below] else grad
                waiting[below] -= 1
                if not waiting[below]:
                    ready.append(below)
    return leaves
