"""What a compiled kernel needs and executes, read from its binary by cuobjdump of Triton's wheel, or AMD's assembly."""

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import triton
from triton.compiler import CompiledKernel

WIDE = 16  # bytes, the most that a thread loads or stores at once
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", re.MULTILINE)
LOCAL_ACCESS = re.compile(r"\b(?:LDL|STL)\b")
BRANCH = re.compile(r"(?P<predicate>@\S+ )?(?P<name>BRA\S*|CALL\.REL\S*) (?P<operand>\S+, )?(?P<target>0x[0-9a-f]+)")


class Resources(NamedTuple):
    """Of a thread."""

    registers: int
    stack: int  # bytes of stack and local memory, where registers spill


class Code(NamedTuple):
    """Instructions of a kernel. Of AMD's, the ways through it are not followed."""

    instructions: int
    shortest: int | None  # instructions on the shortest way to the end
    longest: int | None  # on the longest, where loops take all turns that they may
    wide_loads: int  # from global memory; of NVIDIA's those on the shortest way
    wide_stores: int


def resources(kernel: CompiledKernel) -> Resources:
    """Registers and spills. Of AMD's, scalars that spill go to vector registers, and do not count.

    Neither does memory that no instruction accesses: LLVM of triton 3.8 reserves 8 bytes for vectors of conditions.
    """
    if assembly := kernel.asm.get("amdgcn"):
        names = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        registers, private, spilled = (int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for name in names)
        return Resources(registers, max(private, 4 * spilled))
    usage = _cuobjdump(kernel.asm["cubin"], "--dump-resource-usage")
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    accessed = stack + local > 0 and LOCAL_ACCESS.search(_cuobjdump(kernel.asm["cubin"], "-sass"))
    return Resources(registers, stack + local if accessed else 0)


def code(kernel: CompiledKernel, turns: int) -> Code:
    """Instructions of a kernel whose loops take at most `turns` turns."""
    if assembly := kernel.asm.get("amdgcn"):
        patterns = (r"^\t[a-z]\w+ ", r"\t(?:global|buffer)_load_dwordx4", r"\t(?:global|buffer)_store_dwordx4")
        instructions, loads, stores = (len(re.findall(pattern, assembly, re.MULTILINE)) for pattern in patterns)
        return Code(instructions, None, None, loads, stores)
    lines = INSTRUCTION.findall(_cuobjdump(kernel.asm["cubin"], "-sass"))
    following = successors(lines)
    way = shortest_way(following)
    loads, stores = (
        sum(re.match(rf"(@\S+ )?{name}\.E\S*\.128", lines[number][1]) is not None for number in way)
        for name in ("LDG", "STG")
    )
    return Code(len(lines), len(way), longest_way(following, turns), loads, stores)


@cache
def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def successors(lines: list[tuple[str, str]]) -> list[list[int]]:
    """What may follow each of (address, instruction); none follows the end.

    BRA.DIV is where the threads of a warp have parted, which they never do in these kernels. A CALL comes back, but for
    one under a condition, by which older GPUs leave loops.
    """
    number = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    following = []
    for i, (_, line) in enumerate(lines):
        after = [] if line.startswith(("EXIT", "RET")) else [i + 1]
        branch = BRANCH.match(line)
        if branch and not branch["name"].startswith("BRA.DIV"):
            conditional = branch["predicate"] or branch["operand"]
            if conditional:
                after.append(number[int(branch["target"], 16)])
            elif branch["name"].startswith("BRA"):
                after = [number[int(branch["target"], 16)]]
        following.append(after)
    return following


def shortest_way(following: list[list[int]]) -> list[int]:
    """The instructions on the shortest way from the first to an end."""
    came_from, newest = {0: 0}, [0]
    while not (ends := [number for number in newest if not following[number]]):
        reached = {after: number for number in newest for after in following[number] if after not in came_from}
        came_from |= reached
        newest = list(reached)
    way = [ends[0]]
    while way[-1]:
        way.append(came_from[way[-1]])
    return way[::-1]


def longest_way(following: list[list[int]], turns: int) -> int:
    """Instructions on the longest way to an end; a loop, which ends with a branch back, counts `turns` times."""
    reachable, new = {0}, {0}
    while new:
        new = {after for number in new for after in following[number]} - reachable
        reachable |= new
    loops = [(begin, end) for end in reachable for begin in following[end] if begin < end]
    longest = dict.fromkeys(reachable, 0)  # up to each instruction and with it; a way leads only forward
    for number in sorted(reachable):
        longest[number] += turns ** sum(begin <= number <= end for begin, end in loops)
        for after in following[number]:
            if after > number:
                longest[after] = max(longest[after], longest[number])
    return max(longest[number] for number in reachable if not following[number])


def row_bytes(kernel: CompiledKernel, tile: tuple[int, int], itemsize: int) -> set[int]:
    """Neighbouring bytes of memory that one instruction of a warp loads or stores.

    One number for each layout in which the kernel accesses tiles of this shape; AMD's are not known.
    """
    pair, ir = r"\[(\d+), (\d+)\]", kernel.asm["ttgir"]
    layout = rf"^(#\w+) = #ttg\.blocked<{{sizePerThread = {pair}, threadsPerWarp = {pair}, .*order = \[(\d), \d\]}}>"
    of_warp = {}
    for name, *numbers in re.findall(layout, ir, re.MULTILINE):
        *sizes, nearest = map(int, numbers)
        of_warp[name] = min(tile[nearest], sizes[nearest] * sizes[2 + nearest]) * itemsize
    access = rf"tt\.(?:load|store) .*: tensor<{tile[0]}x{tile[1]}x!tt\.ptr<\w+>, (#\w+)>"
    return {of_warp[name] for name in re.findall(access, ir)}
