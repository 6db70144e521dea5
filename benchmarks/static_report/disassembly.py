"""Instructions of a compiled kernel, counted in its disassembly: those of each innermost loop, and those of no loop.

A warp issues one instruction at a time and a multiprocessor of the architectures here four in a cycle, so a kernel with
so many instructions cannot be faster, whatever memory does. Instructions that take their unit for longer than a cycle
(a 32 x 32 -> 64 bit product two, an exponential eight) count as one: the bound is one from below.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from typing import NamedTuple

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+\S")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")


class Code(NamedTuple):
    """Instructions of each innermost loop in the order of the program, and of all that is in none of them."""

    loops: tuple[int, ...]
    straight: int


@functools.cache
def disassemble(kernel) -> Code:
    """The code of a kernel that Triton compiled for an NVIDIA GPU."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return count(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def count(assembly: str) -> Code:
    """A loop is what lies between a label and a branch back to it; a branch to itself, which ends a kernel, is none.

    Example:
        >>> count('''.L_x_0:
        ... /*0000*/ IADD R1, R1, 1 ;
        ... /*0010*/ @P0 BRA `(.L_x_0) ;
        ... /*0020*/ EXIT ;''')
        Code(loops=(2,), straight=1)
    """
    number, labels, loops = 0, {}, []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif _INSTRUCTION.match(line):
            number += 1
            branch = _BRANCH.search(line)
            if branch and number - labels.get(branch[1], number) > 1:
                loops.append((labels[branch[1]], number))
    inner = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= other[0] and other[1] <= end and other != (begin, end) for other in loops)
    ]
    lengths = tuple(end - begin for begin, end in sorted(set(inner)))
    return Code(lengths, number - sum(lengths))
