"""What part of a training step a kernel of a GPU belongs to, by its name in the profiler."""

PARTS = ("convolution", "norm", "fused", "copies", "loss", "optimiser", "other")
OF_LOSS = (  # kernels of dwtriton/kernels
    "bags_kernel",
    "boxes_kernel",
    "touching_kernel",
    "listing_kernel",
    "correction_kernel",
    "dense_forward_kernel",
    "dense_backward_kernel",
    "pairs_backward_kernel",
    "finish_kernel",
)
COPIES = ("memcpy", "memset", "copy_kernel", "copyfunctor", "catarray", "fillfunctor", "nchwtonhwc", "nhwctonchw")
OPTIMISER = ("multi_tensor_apply",)  # also the EMA and the loss scale: whatever visits all weights at once
NORM = ("norm", "rowwisemoments", "gammabeta", "internalgradients", "::bn_")
INDUCTORS_NORM = ("norm", "mean", "addcmul", "rsqrt")  # operations of model/group_norm.py, and of folded batch norms
CONVOLUTION = (
    "conv",
    "gemm",
    "cudnn",
    "cutlass",
    "xmma",
    "fprop",
    "dgrad",
    "wgrad",
    "nvjet",
    "winograd",
    "im2col",
    "col2im",
    "igemm",
    "cijk_",  # AMD's rocBLAS
)
INDUCTOR = "triton_"
DIRECT_COPY = "direct_copy_kernel"  # PyTorch's copy to another layout or dtype


def part_of(name: str) -> str:
    """Return which of PARTS a kernel belongs to.

    "norm" are those that say so, and Inductor's with the operations of norms; "fused" are all others of Inductor:
    activations, additions, casts. Copies from one layout to another that cuDNN makes are copies. Matrix products are
    convolutions: those of one pixel.
    """
    lower = name.lower()
    if name in OF_LOSS:
        return "loss"
    if lower.startswith(INDUCTOR):
        return "norm" if _has(lower, INDUCTORS_NORM) else "fused"
    for part, words in (("copies", COPIES), ("optimiser", OPTIMISER), ("norm", NORM), ("convolution", CONVOLUTION)):
        if _has(lower, words):
            return part
    return "other"


def _has(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)
