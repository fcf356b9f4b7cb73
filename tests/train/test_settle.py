"""What `auto` means on which device, and what cannot be compiled."""

import pytest
import torch

from dwtriton.config.load import load_config
from dwtriton.core.errors import UserError
from dwtriton.train import settle
from dwtriton.train.settle import settle_buckets, settle_for_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hardware(monkeypatch):
    """hardware(amx=..., bfloat16=...): a CPU with AMX, a GPU that multiplies bfloat16 (every GPU can emulate it)."""

    def have(amx: bool = False, bfloat16: bool = False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
        )

    return have


def settled(device, *overrides):
    cfg = settle_for_device(load_config("r50_1x", overrides), device)
    return cfg.train.precision, cfg.train.compile


def test_auto_takes_bfloat16_where_the_hardware_multiplies_it_and_compiles_on_a_gpu(hardware):
    hardware(amx=True, bfloat16=False)
    assert settled(CPU) == ("bfloat16", "off")
    assert settled(GPU) == ("float32", "default")
    hardware(amx=False, bfloat16=True)
    assert settled(CPU) == ("float32", "off")
    assert settled(GPU) == ("bfloat16", "default")


@pytest.mark.parametrize(("gain", "precision"), [(0.7, "float32"), (1.1, "float32"), (1.6, "bfloat16")])
def test_avx512_trains_in_bfloat16_where_that_is_measured_to_be_faster(gain, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": True})
    monkeypatch.setattr(settle, "_gain_of_bfloat16", lambda: gain)
    assert settled(CPU)[0] == precision


def test_measuring_the_gain_changes_nothing_else():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert 0.01 < settle._gain_of_bfloat16() < 100
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_of_the_config_stay(hardware):
    hardware()
    assert settled(CPU, "train.precision=float16", "train.compile=true") == ("float16", "default")
    assert settled(GPU, "train.precision=bfloat16", "train.compile=false") == ("bfloat16", "off")
    assert settled(GPU, "train.compile=reduce-overhead")[1] == "reduce-overhead"


def test_sizes_that_nobody_counts_are_not_compiled(hardware):
    hardware()
    assert settled(CPU, "data.buckets=0")[1] == "off"
    with pytest.raises(
        UserError, match=r"data\.buckets = 0 .*: set data\.buckets to a number, or train\.compile = off"
    ):
        settled(GPU, "data.buckets=0")


def test_cuda_graphs_without_a_gpu_are_an_error_with_the_remedy(hardware):
    hardware()
    with pytest.raises(UserError, match=r"reduce-overhead records CUDA graphs, and PyTorch finds no GPU: .* = default"):
        settled(CPU, "train.compile=reduce-overhead")
    assert settled(CPU, "train.compile=max-autotune")[1] == "max-autotune"


def test_chosen_buckets_are_recorded_and_taken_as_they_are_the_next_time(finished, tiny):
    from dwtriton.data.prepare import prepare_data

    cfg = tiny("data.buckets=2", "data.short_side=[64, 96]", "data.long_side=160")
    train_set, _ = prepare_data(cfg)
    chosen = settle_buckets(cfg, train_set)
    assert len(chosen.data.buckets) == 2
    assert settle_buckets(chosen, train_set) == chosen
    assert settle_buckets(tiny("data.buckets=0"), train_set) == tiny("data.buckets=0")
