"""torch.compile in training: what is compiled, one graph for each size of batch, and a watch for graphs made later."""

import torch
from torch import Tensor, nn

from dwtriton.config.schema import DataConfig
from dwtriton.core.targets import PackedTargets
from dwtriton.data.transforms import normalise
from dwtriton.model.detector import DualWeightDetector

UNEXPECTED = 16  # graphs beyond the expected ones before torch.compile refuses to make more


class TrainingNetwork(nn.Module):
    """From the bytes of a batch to its losses, as one graph."""

    def __init__(self, detector: DualWeightDetector, cfg: DataConfig) -> None:
        super().__init__()
        self.detector, self.cfg = detector, cfg

    def forward(self, images: Tensor, image_sizes: Tensor, targets: PackedTargets) -> dict[str, Tensor]:
        """images uint8 [B, 3, H, W], zero-padded; image_sizes [B, 2], (h, w) before padding; as `detector(...)`."""
        return self.detector(normalise(images, image_sizes, self.cfg), targets)


def compile_network(network: nn.Module, mode: str, graphs: int) -> nn.Module:
    """The network under torch.compile, for at most `graphs` sizes of batch. It shares the weights of `network`.

    A graph is whole or an error (`fullgraph`), and made for one size: nothing else may make another. Wrap the result
    into DistributedDataParallel, not the other way round; gradients are then exchanged after the backward pass.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, graphs + UNEXPECTED)
    settings.optimize_ddp = False  # would cut the graph into pieces at the borders of gradient buckets
    return torch.compile(network, fullgraph=True, dynamic=False, mode=mode)


class GraphWatch:
    """Counts the graphs that torch.compile makes inside `with watch:`, and says why there is one too many."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.graphs = self._told = 0
        self._causes: set[str] = set()

    def __enter__(self) -> None:
        self._before = _graphs_of_process()

    def __exit__(self, *error: object) -> None:
        self.graphs += _graphs_of_process() - self._before

    def unexpected_recompile(self) -> str | None:
        """The cause of a graph beyond the expected ones, once: None if there is none, or its cause was told before."""
        if self.graphs <= max(self.expected, self._told):
            return None
        self._told = self.graphs
        reasons = [m.recompile_reason for m in torch._dynamo.utils.get_compilation_metrics() if m.recompile_reason]
        cause = reasons[-1].partition("\n")[0] if reasons else "PyTorch names no cause"
        if cause in self._causes:
            return None
        self._causes.add(cause)
        return cause


def _graphs_of_process() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
