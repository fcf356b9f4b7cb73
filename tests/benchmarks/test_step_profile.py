"""Where the time of a step goes: the loss by its operators, and on a GPU all kernels by their names."""

import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks import kernel_names, methods, step_profile, train_report
from benchmarks.cases import Size, make_case
from benchmarks.machine import ROOT

CPU = torch.device("cpu")
TINY = Size(height=96, width=128, classes=4)


def test_the_share_of_the_loss_is_that_of_its_operators():
    case = make_case(TINY, 2, 3, torch.float32, CPU)
    eager, released = (step_profile.profile_step(methods.make_step(name, case), CPU) for name in ("eager", "released"))
    assert eager.keys() == {"loss_share"}
    assert 0.5 < eager["loss_share"] < 1  # the rest divides and sums up
    assert released == {}


def test_on_a_gpu_the_time_of_the_device_is_shared_out_by_operators_and_by_names(monkeypatch):
    def event(name, device_type, device_time, annotation=False):
        return SimpleNamespace(
            name=name, device_type=device_type, device_time_total=device_time, is_user_annotation=annotation
        )

    cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        event("dwtriton::dual_weight", cpu, 2),
        event("dwtriton::dual_weight_backward", cpu, 3),
        event("aten::convolution", cpu, 95),
        event("dense_forward_kernel", gpu, 2),
        event("pairs_backward_kernel", gpu, 3),
        event("sm90_xmma_fprop_implicit_gemm", gpu, 85),
        *[event(DIRECT_COPY, gpu, 2)] * 3,
        event("Memcpy HtoD (Pinned -> Device)", gpu, 4),
        event("Torch-Compiled Region", gpu, 90, annotation=True),
    ]

    @contextmanager
    def profile(**_settings):
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(step_profile, "profile", profile)
    monkeypatch.setattr(step_profile, "STEPS", 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    found = step_profile.profile_step(lambda: None, torch.device("cuda"))
    assert found.pop("kernels_ms") == dict.fromkeys(kernel_names.PARTS, 0) | {
        "convolution": 0.085,
        "copies": 0.01,
        "loss": 0.005,
    }
    assert found == {"loss_share": 0.05, "direct_copies": 3}
    row = {"config": "r50_1x", "images": 2, "size": "64x96", "method": "compiled", "skipped": "", "kernels_ms": {}}
    row |= step_profile.by_kernel(events)
    line = train_report.kernel_lines([row])[2]
    assert line == "| r50_1x, 2 of 64x96 | compiled | 0.1 | 0.085 | 0 | 0 | 0.01 | 0.005 | 0 | 0 | 3 |"


DIRECT_COPY = (
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
    "direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const::{lambda(c10::BFloat16)#1}>"
)
FOREACH = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
NAMES = {  # as profilers print them
    "sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": "convolution",
    "sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize64x64x64_stage4_warpsize1x4x1_g1"
    "_tensor16x8x16_execute_kernel__5x_cudnn": "convolution",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_128x128_32x5_nhwc>": "convolution",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x256_32x3_nn_align8>": "convolution",
    "nvjet_tst_192x192_64x3_2x1_v_bz_coopB_NNN": "convolution",
    "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, false>": "convolution",
    "void at::native::im2col_kernel<c10::BFloat16>": "convolution",
    "miopenSp3AsmConv_v30_3_1_gfx9_fp32_f2x3_stride1": "convolution",
    "void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>": "copies",
    "void cudnn::engines_precompiled::nhwcToNchwKernel<__half, __half, float, false, true>": "copies",
    DIRECT_COPY: "copies",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "Memset (Device)": "copies",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1>>": "copies",
    f"{FOREACH}TensorListMetadata<2>, at::native::(anonymous namespace)::CopyFunctor<float, float, 2>>": "copies",
    f"{FOREACH}FusedOptimizerTensorListMetadata<3>, at::native::FusedSgdMathFunctor<float, 3>>": "optimiser",
    f"{FOREACH}TensorListMetadata<1>, at::native::(anonymous namespace)::UnaryOpFunctor<float, 1, 1, 0>>": "optimiser",
    "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>": "norm",
    "void at::native::batch_norm_transform_input_channels_last_kernel<c10::BFloat16, float, float, 4>": "norm",
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, 512, true, 1>": "norm",
    "triton_red_fused_native_group_norm_backward_2": "norm",
    **dict.fromkeys(
        (  # Inductor of torch 2.11 for an H100: group norm and its ReLU in bfloat16, the passes over all activations
            "triton_red_fused__to_copy_var_mean_0",
            "triton_poi_fused__to_copy__unsafe_view_add_addcmul_clone_expand_mean_mul_pow_relu_rsqrt_sub_unsqueeze_"
            "var_mean_view_3",
            "triton_red_fused__unsafe_view_clone_expand_gt_mean_mul_scalar_tensor_sub_sum_unsqueeze_view_where_4",
            "triton_poi_fused__to_copy__unsafe_view_add_addcmul_clone_div_expand_gt_mean_mul_neg_pow_rsqrt_"
            "scalar_tensor_sub_unsqueeze_var_mean_view_where_9",
        ),
        "norm",
    ),
    "triton_per_fused_gt_scalar_tensor_sum_where_5": "fused",
    "triton_poi_fused__unsafe_index_add_convolution_relu_11": "fused",
    "dense_backward_kernel": "loss",
    "void at::native::(anonymous namespace)::max_pool_forward_nhwc<c10::BFloat16, int>": "other",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>": "other",
}


@pytest.mark.parametrize(("name", "part"), NAMES.items())
def test_kernels_are_told_apart_by_their_names(name, part):
    assert kernel_names.part_of(name) == part


def test_all_kernels_of_the_loss_are_known():
    sources = (ROOT / "dwtriton" / "kernels").glob("*.py")
    found = {
        name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
    }
    assert found - {"assign_kernel"} == set(kernel_names.OF_LOSS)  # that one is for pictures
