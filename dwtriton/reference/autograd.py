"""Gradients of a loss operator by a second operator: what every backend of the loss tells autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def register_gradients(
    operator: CustomOpDef,
    gradients: CustomOpDef,
    saved: Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Sequence[Tensor | None], tuple[Any, ...]]],
) -> None:
    """Let `gradients` compute the backward pass of `operator`.

    `operator(cls_logits, box_distances, objectness, *others) -> (sums, *more)`: each of the first three arguments is a
    list with a tensor per level; only they receive a gradient, and only from `sums`.
    `saved(inputs, outputs)` chooses from these arguments and results the tensors and the constants that
    `gradients(grad_sums, cls_logits, box_distances, objectness, tensors, *constants)` needs. It returns the gradients
    of all levels in one list: of class logits, then of distances, then of objectness logits.
    Double backward raises RuntimeError.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        tensors, ctx.constants = saved(inputs, output)
        ctx.levels, ctx.others = len(inputs[0]), len(inputs) - 3
        ctx.save_for_backward(*(level for kind in inputs[:3] for level in kind), *tensors)
        ctx.mark_non_differentiable(*(part for result in output[1:] for part in _as_list(result)))
        ctx.set_materialize_grads(False)  # or else autograd fills zeros for the results without a gradient

    def backward(ctx: Any, grad_sums: Tensor | None, *_: Any) -> tuple[Any, ...]:
        others = [None] * ctx.others
        if grad_sums is None:
            return *([None] * ctx.levels for _ in range(3)), *others
        if torch.is_grad_enabled():
            raise RuntimeError("the dual weight loss has no second derivative; call backward without create_graph=True")
        kinds = [slice(i * ctx.levels, (i + 1) * ctx.levels) for i in range(3)]
        outputs = [list(ctx.saved_tensors[kind]) for kind in kinds]
        grads = gradients(grad_sums, *outputs, list(ctx.saved_tensors[3 * ctx.levels :]), *ctx.constants)
        return *(grads[kind] for kind in kinds), *others

    operator.register_autograd(backward, setup_context=setup_context)


def _as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
