"""The forward and backward pass of a detector as one graph, traced on fake CUDA tensors: no GPU is needed.

PyTorch's engine refuses to run backward for a device that is not there, so nodes are called here, in its order of
dependence. Graphs are those of float16: whether cuDNN computes in bfloat16, PyTorch asks the GPU.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from dwtriton.model.pixels import PixelDetector

DEVICE = "cuda"
CONVOLUTIONS = {torch.ops.aten.convolution.default: 2, torch.ops.aten.convolution_backward.default: 3}  # their tensors
OUT_OF_PLACE = {
    getattr(getattr(torch.ops.aten, f"{name}_"), overload): getattr(getattr(torch.ops.aten, name), overload)
    for name, overload in (("relu", "default"), ("add", "Tensor"), ("mul", "Tensor"), ("div", "Tensor"))
}


def joint_graph(network: PixelDetector, size: tuple[int, int], images: int = 2) -> GraphModule:
    """Trace compiled training under float16 autocast, from uint8 images to gradients of all parameters that have one.

    The loss is left out: gradients of the head's outputs are inputs, in the layout that the loss's operator has.
    """
    named = dict((*network.named_parameters(), *network.named_buffers()))

    def outputs(primals: Sequence[Tensor]) -> list[Tensor]:
        *state, pixels, sizes = primals
        given = {f"network.{name}": tensor for name, tensor in zip(named, state)}
        return torch.func.functional_call(_HeadOutputs(network), given, (pixels, sizes))

    def joint(primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        results = outputs(primals)
        return [*results, *_gradients(results, tangents)]

    with FakeTensorMode():
        pixels = torch.empty(images, *size, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        sizes = torch.empty(images, 2, dtype=torch.int64, device=DEVICE)
        primals = [*map(_fake, named.values()), pixels, sizes]
        precision = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
        try:  # torch.autocast refuses a device that is not there
            torch.set_autocast_enabled(DEVICE, True)
            torch.set_autocast_dtype(DEVICE, torch.float16)
            with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
                tangents = [torch.empty_like(output) for output in outputs(primals)]
                module = make_fx(joint)(primals, tangents)
        finally:
            torch.set_autocast_enabled(DEVICE, precision[0])
            torch.set_autocast_dtype(DEVICE, precision[1])
    for node in module.graph.nodes:
        node.target = OUT_OF_PLACE.get(node.target, node.target)  # later nodes take the result, not what was changed
    module.graph.eliminate_dead_code()
    return module


def convolution_inputs(graph: Graph) -> list[tuple[Node, Tensor]]:
    """Each tensor that enters a convolution or its backward pass, with the node that takes it."""
    return [
        (node, given.meta["val"])
        for node in graph.nodes
        for given in node.args[: CONVOLUTIONS.get(node.target, 0)]
        if isinstance(given, Node)
    ]


def kept(module: GraphModule, outputs: int) -> list[Node]:
    """Return what torch.compile keeps of the forward pass, with `outputs` results, one node for each piece of memory.

    It is chosen by PyTorch's partitioner, which recomputes what is cheap; parameters and images are not counted.
    """
    forward, _ = min_cut_rematerialization_partition(module, None, num_fwd_outputs=outputs)
    found = {}
    for node in forward.graph.output_node().args[0][outputs:]:
        if node.op != "placeholder":
            found.setdefault(node.meta["val"].untyped_storage()._cdata, node)
    return list(found.values())


class _HeadOutputs(nn.Module):
    def __init__(self, network: PixelDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]:
        return [level for kind in self.network.head_outputs(pixels, sizes) for level in kind]


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    return fake.requires_grad_(tensor.requires_grad)


def _gradients(outputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of all leaves, as the engine computes them, given those of `outputs`."""
    waiting, nodes = Counter(), [output.grad_fn for output in outputs]
    for node in nodes:
        for below, _ in node.next_functions:
            if below is not None:
                if below not in waiting and below not in nodes:
                    nodes.append(below)
                waiting[below] += 1
    grads = defaultdict(dict)
    for output, tangent in zip(outputs, tangents):
        grads[output.grad_fn][output.output_nr] = tangent
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
