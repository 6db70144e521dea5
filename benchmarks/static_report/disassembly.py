"""Number of instructions of a compiled kernel, from its disassembly: in each innermost loop, and outside of loops.

A warp issues one instruction at a time, and a multiprocessor of these architectures issues four per cycle. So the
number of instructions is a lower bound of a kernel's time. Instructions that occupy their unit for several cycles (two
for a 32 x 32 -> 64 bit product, eight for an exponential) count as one.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from typing import NamedTuple

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?!NOP)\S")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")


class Code(NamedTuple):
    """Number of instructions.

    loops: of each innermost loop, in the order of the code. setups: of what runs before each of them, and only if it
    runs at all. straight: of all other code.
    """

    loops: tuple[int, ...]
    setups: tuple[int, ...]
    straight: int


@functools.cache
def disassemble(kernel) -> Code:
    """Count the instructions of a kernel that Triton compiled for an NVIDIA GPU."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return count(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def count(assembly: str) -> Code:
    """Count the instructions of a disassembly.

    A loop extends from a label to a branch back to it. A branch to itself, which ends a kernel, is not a loop. Its
    setup begins behind the nearest branch before it that leads past it. NOPs, which fill up a kernel's last line, do
    not count.

    Example:
        >>> count('''.L_x_0:
        ... /*0000*/ IADD R1, R1, 1 ;
        ... /*0010*/ @P0 BRA `(.L_x_0) ;
        ... /*0020*/ EXIT ;''')
        Code(loops=(2,), setups=(0,), straight=1)
    """
    number, labels, loops, forward = 0, {}, [], []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif _INSTRUCTION.match(line):
            number += 1
            branch = _BRANCH.search(line)
            if branch and branch[1] not in labels:
                forward.append((number, branch[1]))
            elif branch and number - labels[branch[1]] > 1:
                loops.append((labels[branch[1]], number))
    inner = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= other[0] and other[1] <= end and other != (begin, end) for other in loops)
    ]
    inner = sorted(set(inner))
    guards = [
        max((behind for behind, label in forward if behind <= begin and labels[label] >= end), default=begin)
        for begin, end in inner
    ]
    lengths = tuple(end - begin for begin, end in inner)
    setups = tuple(begin - guard for (begin, _), guard in zip(inner, guards, strict=True))
    return Code(lengths, setups, number - sum(lengths) - sum(setups))
