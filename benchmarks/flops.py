"""Floating-point operations that a GPU can do in a second."""

PEAK_TFLOPS = {  # dense bfloat16 with tensor cores, by NVIDIA's data sheets; the first name found in the GPU's counts
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def peak_flops(gpu: str) -> float | None:
    """Operations a second of dense bfloat16; None for a GPU that is not listed."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)
