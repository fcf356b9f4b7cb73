"""Registers and counts of all kernels for sm_90 via the launchers."""
import sys, os, re
sys.path.insert(0, "/tmp/k2/benchmarks"); sys.path.insert(0, "/tmp/k2/proto")
import torch, triton
from contextlib import contextmanager
from unittest import mock
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
import types
from dwtriton.kernels import ops, dense, bags, boxes, pairs, finish, tuning, assign
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.targets import pack_targets
from aot import stats
launch = JITFunction.run
compiled = []
def comp(kernel, *args, grid, warmup, **options):
    b = launch(kernel, *args, grid=grid, warmup=True, **options)
    compiled.append((kernel.__name__, b, options))
class D:
    def __init__(self, gpu): self.get_current_target = self.get_current_device = lambda: gpu
    def get_current_stream(self, _): return 0
gpu = GPUTarget("cuda", 90, 32)
def case(dtype, C, B=2, layout=torch.channels_last, strides=(8,16,32,64,128), size=(64,96), boxes_each=3, weights=False):
    sizes = [(-(-size[0]//s), -(-size[1]//s)) for s in strides]
    mk = lambda c: [torch.randn(B, c, *s).to(dtype).contiguous(memory_format=layout) for s in sizes]
    t = [{"boxes": torch.tensor([[3.,3,40,40]]*boxes_each), "labels": torch.zeros(boxes_each, dtype=torch.int64)} for _ in range(B)]
    return mk(C), mk(4), mk(1), pack_targets(t, "cpu"), strides
def run(dtype=torch.bfloat16, C=80, configs=None, **kw):
    z, d, u, t, strides = case(dtype, C, **kw)
    p, b = read_pyramid(z, d, u, strides), read_boxes(t)
    configs = configs or tuning.default_configs(C, dtype.itemsize)
    compiled.clear()
    with mock.patch.object(JITFunction, "run", comp), mock.patch.object(triton.runtime.driver, "_active", D(gpu)):
        *_, poison, table = ops.forward_pass(p, b, True, configs)
        ops.backward_pass(p, b, table, poison, [torch.ones(())]*3, True, configs)
    return list(compiled)
if __name__ == "__main__":
    from collections import Counter
    for dtype in (torch.bfloat16, torch.float32):
        for name, b, o in run(dtype):
            r, st, sass = stats(b)
            open(f"/tmp/sass_{name}_{str(dtype)[6:]}.txt", "w").write(sass)
            ops_ = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_]+(?:\.[A-Z0-9_]+)*)", sass)
            print(name, str(dtype)[6:], "regs", r, "stack", st, "shared", b.metadata.shared, "n", len(ops_), sorted({x for x in ops_ if x.startswith(("LDG", "STG"))}))
