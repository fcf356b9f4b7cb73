"""A GPU that is too small and a compiler that fails: one line with the cause and the remedy."""

from functools import partial

import pytest
import torch

from dwtriton.config.load import override_config
from dwtriton.core.errors import UserError
from dwtriton.train import compile as compile_module
from dwtriton.train.memory import kept_bytes, state_bytes
from dwtriton.train.trainer import Trainer

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB of which 1.10 GiB is "
    "free. Process 1 has 10.66 GiB memory in use. See documentation for Memory Management"
)


def test_a_gpu_that_is_too_small_is_told_what_a_step_keeps_and_what_keeps_less(tiny, tmp_path, console):
    settings = ["data.buckets=[[96, 96]]", "backbone.frozen_statistics=true", "train.precision=bfloat16"]
    trainer = Trainer(tiny(*settings), tmp_path / "run", console)

    def fail(*_):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    trainer.train_step._losses = fail
    with pytest.raises(UserError) as error:
        trainer.fit()
    kept, state = kept_bytes(trainer.cfg, 4, (96, 96)) / 1e9, state_bytes(trainer.cfg) / 1e9
    assert str(error.value) == (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB; uncompiled, a step "
        f"keeps about {kept + state:.1f} GB: {kept:.1f} for the backward pass of 4 images of 96x96 and {state:.1f} for "
        "weights, gradients and momenta. "
        "Lower data.batch_size, raise train.accumulate, or set train.activation_checkpointing=true"
    )


def test_a_compiler_that_fails_names_the_cause_and_the_way_around(tiny, tmp_path, console, monkeypatch):
    def backend(_graph, _inputs):
        raise RuntimeError("no C compiler was found\nin any folder")

    monkeypatch.setattr(compile_module.torch, "compile", partial(torch.compile, backend=backend))
    trainer = Trainer(tiny("train.compile=default"), tmp_path / "run", console)
    with pytest.raises(UserError) as error:
        trainer.fit()
    assert str(error.value) == (
        "torch.compile failed: backend='backend' raised: RuntimeError: no C compiler was found in any folder; "
        "--set train.compile=off trains the same, only slower"
    )


def test_the_estimate_grows_with_images_and_less_with_activation_checkpointing(tiny):
    settings = ["train.precision=bfloat16", "backbone.frozen_statistics=true"]
    plain = tiny(*settings)
    saving = override_config(plain, ["train.activation_checkpointing=true"])
    one, four, saved = kept_bytes(plain, 1, (64, 96)), kept_bytes(plain, 4, (64, 96)), kept_bytes(saving, 4, (64, 96))
    assert one < four < 4 * one  # casts of the weights are kept once
    assert saved < four
