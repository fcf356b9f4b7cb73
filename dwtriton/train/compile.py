"""torch.compile in training: one graph for each batch size, and a watch for recompilations."""

import torch
from torch import nn

SPARE_GRAPHS = 16  # recompilations beyond the expected graphs that torch.compile allows before it raises


def compile_network(network: nn.Module, mode: str, graphs: int) -> nn.Module:
    """Return the network under torch.compile, with one whole graph or an error for each of `graphs` batch sizes.

    Wrap the result into DistributedDataParallel, not the other way round: gradients are then exchanged after the
    backward pass.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, graphs + SPARE_GRAPHS)
    settings.optimize_ddp = False  # would split the graph at the borders of DDP's gradient buckets
    return torch.compile(network, fullgraph=True, dynamic=False, mode=mode)


class GraphWatch:
    """Counts the graphs that torch.compile makes inside `with watch:`, and explains those beyond the expected ones.

    The counters are private to torch 2.11: PyTorch has no public ones.
    """

    def __init__(self, expected: int) -> None:
        self.expected, self.graphs = expected, 0
        self._reasons: set[str] = set()  # reported so far

    def __enter__(self) -> None:
        self.graphs -= torch._dynamo.utils.counters["stats"]["unique_graphs"]  # of this process so far

    def __exit__(self, *error: object) -> None:
        self.graphs += torch._dynamo.utils.counters["stats"]["unique_graphs"]

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
