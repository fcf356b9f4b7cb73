"""The choice of a backend: what is used where, and what is said where it cannot be."""

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch

from dwtriton import DualWeightAssigner, DualWeightLoss, pack_targets, reference
from dwtriton.losses import dual_weight
from tests.support.loss_cases import LOSSES, random_case

CASE = random_case(1, [2], sizes=((3, 4),), strides=(8,))
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_python(code, **env):
    """A fresh Python: the interpreter is chosen when Triton is imported."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True)


@pytest.fixture
def takes(monkeypatch):
    """takes(loss, dtype, device): which backend computes the loss of CASE, of which nothing is computed."""
    from dwtriton import kernels

    called = []
    for name, backend in (("torch", reference), ("triton", kernels)):
        result = torch.zeros(3).unbind()
        monkeypatch.setattr(
            backend, "dual_weight_losses", lambda *_, name=name, result=result: called.append(name) or result
        )

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the meta device

    def backend_of(loss, dtype=torch.float32, device="cpu"):
        inputs = ([level.detach().to(device) for level in kind] for kind in CASE.tensors(dtype))
        loss(*inputs, pack_targets(CASE.targets(), "cpu").to(device))
        return called.pop()

    return backend_of


@pytest.mark.parametrize("module", ["DualWeightLoss", "DualWeightAssigner"])
def test_triton_without_a_gpu_says_what_to_do(module):
    code = "import torch; torch.cuda.is_available = lambda: False\n"
    code += f"from dwtriton import {module}; {module}(backend='triton')"
    result = run_python(code)
    assert result.returncode == 1
    assert 'needs a GPU, and PyTorch finds none; use backend="torch", or' in result.stderr
    assert "set TRITON_INTERPRET=1 before Python starts" in result.stderr
    assert run_python(code, TRITON_INTERPRET="1").returncode == 0


def test_triton_with_tensors_on_the_cpu_of_a_gpu_machine_says_what_to_do():
    code = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "from dwtriton import DualWeightLoss\n"
        "levels = [[torch.zeros(1, c, 2, 2)] for c in (3, 4, 1)]\n"
        "targets = [{'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.int64)}]\n"
        "DualWeightLoss((8,), backend='auto')(*levels, targets)\n"
        "DualWeightLoss((8,), backend='triton')(*levels, targets)\n"
    )
    result = run_python(code)
    assert result.returncode == 1
    assert "needs tensors on a GPU, these are on the CPU" in result.stderr


def test_without_triton_auto_is_torch_and_triton_names_the_package(monkeypatch, takes):
    monkeypatch.setattr(dual_weight, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"needs Triton: pip install triton"):
        DualWeightLoss(backend="triton")
    loss = DualWeightLoss(CASE.strides)
    assert takes(loss) == "torch"
    assert takes(loss, device="meta") == "torch"


def test_auto_leaves_the_cpu_and_float64_to_torch(monkeypatch, takes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loss = DualWeightLoss(CASE.strides)
    assert takes(loss) == "torch"
    assert takes(loss, device="meta") == "triton"
    assert takes(loss, torch.float64, device="meta") == "torch"


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match=r"no backend 'cuda'; use \"auto\", \"triton\" or \"torch\""):
        DualWeightAssigner(backend="cuda")


def test_modules_can_be_copied(monkeypatch, takes):
    """As the EMA of a model needs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loss = copy.deepcopy(DualWeightLoss(CASE.strides))
    assert takes(loss, device="meta") == "triton"


def test_the_training_command_refuses_kernels_that_cannot_run(tmp_path):
    command = (
        "import sys, torch; torch.cuda.is_available = lambda: False; import runpy;"
        f"sys.argv = ['train', '--cfg', 'shapes', '--out', {str(tmp_path)!r}, '--data', {str(tmp_path / 'data')!r},"
        " '--set', 'loss.backend=triton', '--set', 'data.shapes={train_images=1, val_images=1, seed=0}'];"
        "runpy.run_module('dwtriton.train', run_name='__main__')"
    )
    result = run_python(command)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith('error: backend="triton" needs a GPU')
    assert len(result.stderr.splitlines()) == 1


def test_the_training_command_takes_its_steps_through_the_kernels(tmp_path):
    """A few steps on a CPU, in the interpreter, with the losses of the torch backend; later ones of updated weights."""
    settings = ["data.shapes={train_images=4, val_images=1, seed=0}", "data.batch_size=2", "data.short_side=[64, 64]"]
    settings += ["data.long_side=96", "inference.short_side=64", "inference.long_side=96", "data.workers=0"]
    settings += ["head.channels=16", "head.convs=1", "head.groups=4", "schedule.epochs=1", "train.precision=float32"]
    settings += ["schedule.warmup_iterations=1"]
    losses = {}
    for backend in ("torch", "triton"):
        out = tmp_path / backend
        command = [sys.executable, "-m", "dwtriton.train", "--cfg", "shapes", "--data", tmp_path / "data", "--out", out]
        for setting in [*settings, f"loss.backend={backend}"]:
            command += ["--set", setting]
        subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, capture_output=True)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[backend] = torch.tensor([[row[name] for name in LOSSES] for row in rows if "loss" in row])
    assert len(losses["torch"]) >= 2
    assert (losses["torch"] > 0).all()
    torch.testing.assert_close(losses["triton"], losses["torch"], rtol=1e-4, atol=0)
