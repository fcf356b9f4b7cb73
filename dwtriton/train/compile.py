"""torch.compile in training: one graph for each batch size, and a watch for recompilations and new CUDA graphs."""

import math

import torch
from torch import nn

from dwtriton.config.schema import Config

SPARE_GRAPHS = 16  # recompilations beyond the expected graphs that torch.compile allows before it raises
RECORDS_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes that do, on a GPU
PARTS_OF_A_PASS = 3  # forward pass, in two parts if the loss reads values on the host between them, and backward pass


def compile_network(network: nn.Module, mode: str, graphs: int) -> nn.Module:
    """Return the network under torch.compile, with one whole graph or an error for each of `graphs` batch sizes.

    Wrap the result into DistributedDataParallel, not the other way round: gradients are then exchanged after the
    backward pass.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, graphs + SPARE_GRAPHS)
    settings.optimize_ddp = False  # would split the graph at the borders of DDP's gradient buckets
    return torch.compile(network, fullgraph=True, dynamic=False, mode=mode)


def cuda_graphs(mode: str, batch_sizes: int, micro_batches: int) -> int:
    """Return how many CUDA graphs a run on a GPU records at most.

    For each size of batch, those of each micro-batch of a step: a later one has another place in memory, since the
    gradients of the earlier ones are still there.
    """
    return PARTS_OF_A_PASS * batch_sizes * micro_batches if mode in RECORDS_CUDA_GRAPHS else 0


def watch_graphs(cfg: Config, on_gpu: bool) -> "GraphWatch":
    """Return a watch that expects the graphs of a run: `train.compile` and buckets of the config are settled."""
    sizes = 0 if cfg.train.compile == "off" else len(cfg.data.buckets)
    return GraphWatch(sizes, cuda_graphs(cfg.train.compile, sizes, cfg.train.accumulate) if on_gpu else 0)


class GraphWatch:
    """Counts the graphs that torch.compile makes inside `with watch:`, and explains those beyond the expected ones.

    Graphs of PyTorch operations are in `graphs`, CUDA graphs in `recorded`. The counters are private to torch 2.11:
    PyTorch has no public ones.
    """

    def __init__(self, expected: int, expected_recordings: int = 0) -> None:
        self.expected, self.graphs = expected, 0
        self.expected_recordings, self.recorded = expected_recordings, 0
        self._reasons: set[str] = set()  # reported so far

    def __enter__(self) -> None:
        self.graphs -= torch._dynamo.utils.counters["stats"]["unique_graphs"]  # of this process so far
        torch._dynamo.callback_handler.register_start_callback(self._count_recording)

    def __exit__(self, *error: object) -> None:
        self.graphs += torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch._dynamo.callback_handler.remove_start_callback(self._count_recording)

    def _count_recording(self, event: "torch._dynamo.callback.CallbackArgs") -> None:
        self.recorded += event.callback_trigger.name == "CUDAGRAPH_RECORDING"

    def unexpected_recordings(self) -> bool:
        """Return whether more CUDA graphs were recorded than expected; it is told once."""
        if self.recorded <= self.expected_recordings:
            return False
        self.expected_recordings = math.inf
        return True

    def unexpected_recompile(self) -> str | None:
        """Return the reason for an unexpected recompilation, or None if there was none or it has been reported."""
        if self.graphs <= self.expected:
            return None
        self.expected = self.graphs
        reasons = [m.recompile_reason for m in torch._dynamo.utils.get_compilation_metrics() if m.recompile_reason]
        reason = reasons[-1].partition("\n")[0] if reasons else "PyTorch gives no reason"
        if reason in self._reasons:
            return None
        self._reasons.add(reason)
        return reason
