"""Checks of the loss before anything is timed, and comparisons of its figures with their targets."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.cases import Case, Size, make_case
from benchmarks.methods import Step, make_step
from benchmarks.timing import capture_graph

SMALL = Size(height=256, width=320, classes=24)
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # relative to the loss, and to the largest entry of the gradient
OVER_FLOOR = {"bfloat16": 1.5, "float32": 1.3}  # targets: at most so many times the floor
PYTORCH_MS = {7: 30, 1000: 200}  # targets: of our PyTorch form in bfloat16, by boxes an image
SPEEDUPS = {"eager": 20, "compiled": 5, "released": 200}  # targets: how many times faster the kernels should be

Check = dict[str, str | float | bool]


def worst_error(method: str, dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest error of a small case against the float64 reference, as a share of the limit; NaN for a NaN.

    Half gradients are allowed their rounding besides: half a unit in the last place.
    """
    case = make_case(SMALL, 2, 12, dtype, device)
    exact = [[level.detach().double().requires_grad_() for level in kind] for kind in case.inputs]
    losses, gradients = make_step(method, case)()
    true_losses, true_gradients = make_step("eager", Case(exact, case.targets, case.packed))()
    shares = [_share(losses[name], loss, LOSS_LIMIT * loss.abs()) for name, loss in true_losses.items()]
    for gradient, truth in zip(gradients, true_gradients):
        rounding = 0.0 if gradient.dtype == torch.float32 else torch.finfo(gradient.dtype).eps / 2
        shares.append(_share(gradient, truth, GRADIENT_LIMIT * truth.abs().amax() + rounding * truth.abs()))
    return float(torch.stack(shares).amax())


def _share(value: Tensor, truth: Tensor, allowed: Tensor) -> Tensor:
    return ((value.detach().double() - truth.detach()).abs() / allowed.detach()).amax()


def runs_without_syncs(step: Step) -> bool:
    """Return whether the host never waits for the device between the call and the gradients."""
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def replays_the_same_bits(step: Step) -> bool:
    """Return whether a CUDA graph of the step can be captured and its replay equals an eager call bit by bit.

    The losses of the eager call are let go before: see "CUDA graphs" in docs/performance.md.
    """
    losses, gradients = step()
    losses = {name: loss.detach().clone() for name, loss in losses.items()}
    try:
        graph, (graph_losses, graph_gradients) = capture_graph(step)
    except RuntimeError:
        torch.cuda.synchronize()
        return False
    for tensor in (*graph_losses.values(), *graph_gradients):
        tensor.detach().fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    pairs = [(losses[name], graph_losses[name]) for name in losses] + list(zip(gradients, graph_gradients))
    return all(torch.equal(one, other) for one, other in pairs)


def target_checks(rows: list[dict], batch: int = 16) -> Iterator[Check]:
    """Yield the targets of the kernels with their figures, as far as the rows hold them."""
    found = {(r["method"], r["dtype"], r["boxes"]): r for r in rows if r["batch"] == batch and "ms" in r}
    for dtype in ("bfloat16", "float32"):
        few, some, many, most = (found.get(("triton", dtype, boxes)) for boxes in (7, 100, 1000, 5000))
        if few:
            yield _check(
                f"{dtype}, 7 boxes: time over the three-trip floor",
                few["ms"] / few["floor_ms"],
                at_most=OVER_FLOOR[dtype],
            )
            for method, factor in SPEEDUPS.items():
                if other := found.get((method, dtype, 7)):
                    yield _check(f"{dtype}, 7 boxes: times faster than {method}", other["ms"] / few["ms"], factor)
        for boxes, most_ms in PYTORCH_MS.items():
            if dtype == "bfloat16" and (plain := found.get(("eager", dtype, boxes))):
                yield _check(f"our PyTorch form, {boxes} boxes: ms", plain["ms"], at_most=most_ms)
        if few and some:
            yield _check(f"{dtype}: time with 100 boxes over that with 7", some["ms"] / few["ms"], at_most=1.3)
        if few and many:
            yield _check(f"{dtype}: time with 1000 boxes over that with 7", many["ms"] / few["ms"], at_most=4)
        if many and most:
            yield _check(f"{dtype}: time with 5000 boxes over that with 1000", most["ms"] / many["ms"], at_most=5)
        if many and "extra_mb" in many:
            yield _check(f"{dtype}, 1000 boxes: extra memory in MB", many["extra_mb"], at_most=6)


def _check(name: str, value: float, at_least: float | None = None, at_most: float | None = None) -> Check:
    limit = {"at_least": at_least} if at_most is None else {"at_most": at_most}
    passed = value >= at_least if at_most is None else value <= at_most
    return {"name": name, "value": round(value, 3), **limit, "passed": passed}
