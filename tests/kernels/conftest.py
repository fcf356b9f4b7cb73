"""Kernels run on a GPU or, with TRITON_INTERPRET=1, in Triton's interpreter, here made faster and stricter."""

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import triton
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    from dwtriton.kernels import INTERPRETED
    from tests.support.kernel_cases import DEVICE

REPORT = pytest.StashKey[list[str]]()
ALIKE = {"fp32", "fp64", "int32", "int64"}  # types whose operations between themselves convert nothing
PATCHED_VERSION = "3.6."  # of Triton, whose interpreter is patched below


def pytest_collection_modifyitems(items):
    """`pytest -m gpu` selects what a GPU can run."""
    for item in items:
        if "device" in item.fixturenames:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def report(request):
    """Texts that pytest prints at its end, whether or not tests fail."""
    return request.config.stash.setdefault(REPORT, [])


def pytest_terminal_summary(terminalreporter):
    for text in terminalreporter.config.stash.get(REPORT, []):
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def device():
    """The device whose tensors the kernels take."""
    if DEVICE is None:
        pytest.skip("no GPU: set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter")
    return DEVICE


@pytest.fixture(scope="session", autouse=True)
def patched_interpreter():
    """Make the interpreter faster, and check every load and store, where this version's private parts are known."""
    if INTERPRETED and is_known_interpreter(triton.__version__):
        speed_up_interpreter()
        check_memory()


def is_known_interpreter(version: str) -> bool:
    """Whether the patches below fit this version of Triton; with another, tests are slow and memory is unchecked."""
    if version.startswith(PATCHED_VERSION):
        return True
    warnings.warn(f"Triton {version}: the interpreter is patched for {PATCHED_VERSION}x only", stacklevel=1)
    return False


def speed_up_interpreter() -> None:
    """Leave out what takes most of the interpreter's time and is of no use in these tests.

    Each call of a device function patches triton.language anew, though the launch has done so; only
    triton.language.core, which Triton's own functions use, needs it. Integer overflow is checked, but no test is large
    enough for it. Types of tuples are computed, but only compilers read them. Types and shapes are made anew for each
    result, and each result's item size is checked.
    """
    interpreter._patch_lang(tl.zeros.fn)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    tl.core._type_for_tuple_values = lambda *_: None
    interpreter.TensorHandle.__post_init__ = lambda self: None
    keep_types()
    skip_what_changes_nothing()
    keep_stack()


def keep_types() -> None:
    """Make the dtype of NumPy for a type, the type of a block and the shape of a tensor once only."""
    find_dtype, dtypes = interpreter._get_np_dtype, {}

    def numpy_dtype(kind):
        if kind.name not in dtypes:
            dtypes[kind.name] = find_dtype(kind)
        return dtypes[kind.name]

    make_block, blocks = tl.block_type.__init__, {}

    def block(self, element_ty, shape):
        key = element_ty.name, *map(tl.core._unwrap_if_constexpr, shape)
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = vars(self)
        self.__dict__ = blocks[key]

    make_tensor, shapes = tl.tensor.__init__, {}

    def tensor(self, handle, type):
        key = tuple(type.shape) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    interpreter._get_np_dtype, tl.block_type.__init__, tl.tensor.__init__ = numpy_dtype, block, tensor


def skip_what_changes_nothing() -> None:
    """Return at once where an operand is no constant, and where two operands have one type and shape already."""
    unwrap, constexpr = tl.core._unwrap_if_constexpr, tl.constexpr
    plain = {int, float, bool, str, tl.tensor, tl.dtype, tl.block_type, tl.pointer_type}

    def unwrapped(value):
        kind = type(value)
        return value if kind in plain else value.value if kind is constexpr else unwrap(value)

    convert = TritonSemantic.binary_op_type_checking_impl

    def converted(self, one, other, *args, **kwargs):
        if type(one) is type(other) is tl.tensor and one.type.name == other.type.name and one.dtype.name in ALIKE:
            return one, other
        return convert(self, one, other, *args, **kwargs)

    tl.core._unwrap_if_constexpr, TritonSemantic.binary_op_type_checking_impl = unwrapped, converted


def keep_stack() -> None:
    """Run kernels in one large piece of CPython's stack: at the end of a small one, each call would allocate the next.

    A frame that asks for much more than it needs gets such a piece, and the frames that it calls lie in what is left.
    """

    def roomy(*args, **kwargs):
        return launch(*args, **kwargs)

    launch = interpreter.GridExecutor.__call__
    roomy.__code__ = roomy.__code__.replace(co_stacksize=40_000)  # words, of 64 Ki
    interpreter.GridExecutor.__call__ = roomy


def check_memory() -> None:
    """Fail a load or store outside the tensors that a kernel was given."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    launch, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store
    memory = []  # begin and end address of each tensor, sorted

    def checked_launch(self, *args, **kwargs):
        tensors = [part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,))]
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.numel()]
        memory[:] = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors)
        launch(self, *args, **kwargs)

    def check(pointers, mask):
        used = pointers.data[mask.data.astype(bool)]
        begins, ends = np.array(memory, np.uint64).T
        tensor = np.searchsorted(begins, used, "right") - 1
        size = pointers.get_element_ty().primitive_bitwidth // 8
        assert (tensor >= 0).all(), "access before the first tensor"
        assert (used + np.uint64(size) <= ends[tensor]).all(), "access after the end of a tensor"

    def checked_load(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    executor.__call__ = checked_launch
    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
