"""Failures of a training step that the user can do something about, in one line with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.train.memory import kept_bytes, state_bytes


@contextmanager
def explain_failures(cfg: Config, images: int, size: tuple[int, int]) -> Iterator[None]:
    """Turn a GPU that is too small, or a compiler that fails, into a UserError.

    The steps inside take micro-batches of `images` images of at most (h, w).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(" of which")[0]  # what was to be allocated, and what the GPU has
        kept, state = kept_bytes(cfg, images, size) / 1e9, state_bytes(cfg) / 1e9
        raise UserError(
            f"{reason}; uncompiled, a step keeps about {kept + state:.1f} GB: {kept:.1f} for the backward pass of "
            f"{images} images of {size[0]}x{size[1]} and {state:.1f} for weights, gradients and momenta. "
            "Lower data.batch_size, raise train.accumulate, or set train.activation_checkpointing=true"
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().partition("\n\n")[0].replace("\n", " ")
        raise UserError(
            f"torch.compile failed: {reason}; --set train.compile=off trains the same, only slower"
        ) from error
