"""Autograd for an operator that computes a loss: a second operator computes its gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef

SECOND_DERIVATIVE = "the dual weight loss has no second derivative; call backward without create_graph=True"


def register_gradients(operator: CustomOpDef, gradients: CustomOpDef, saved: Callable[[tuple, tuple], tuple]) -> None:
    """Let `gradients` compute the backward pass of `operator`.

    `operator(cls_logits, box_distances, objectness, *others) -> (sums, *more)`: each of the first three arguments has a
    tensor per level. Only they receive a gradient, and only from `sums`.
    `saved(inputs, outputs)`: from these arguments and results, the tensors and the constants for
    `gradients(grad_sums, cls_logits, box_distances, objectness, tensors, *constants)`, which returns the gradients of
    all levels in one list, in the order of its arguments. Double backward raises RuntimeError.
    """

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        tensors, ctx.constants = saved(inputs, output)
        ctx.levels, ctx.others = len(inputs[0]), len(inputs) - 3
        ctx.save_for_backward(*(level for kind in inputs[:3] for level in kind), *tensors)
        more = [result if isinstance(result, list) else [result] for result in output[1:]]
        ctx.mark_non_differentiable(*(tensor for result in more for tensor in result))
        ctx.set_materialize_grads(False)  # or else autograd fills zeros for the results without a gradient

    def backward(ctx: Any, grad_sums: torch.Tensor | None, *_: Any) -> tuple:
        others = [None] * ctx.others
        if grad_sums is None:
            return *([None] * ctx.levels for _ in range(3)), *others
        if torch.is_grad_enabled():
            raise RuntimeError(SECOND_DERIVATIVE)
        kinds = [slice(i * ctx.levels, (i + 1) * ctx.levels) for i in range(3)]
        *levels, tensors = (list(ctx.saved_tensors[part]) for part in (*kinds, slice(3 * ctx.levels, None)))
        grads = gradients(grad_sums, *levels, tensors, *ctx.constants)
        return *(grads[kind] for kind in kinds), *others

    operator.register_autograd(backward, setup_context=setup_context)
