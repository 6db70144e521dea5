"""Occupancy: how many programs of a kernel run on a multiprocessor at once, by registers, shared memory and threads.

Source of the limits and of the rounding: CUDA C++ Programming Guide, "Compute Capabilities", table of technical
specifications, and the CUDA occupancy calculator.
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERS = 2**16  # of 32 bits, in four parts; a warp gets its registers from one part, in multiples of 256
PARTS = 4
RESERVED = 1024  # bytes of shared memory that the system reserves for each program


class Limits(NamedTuple):
    """Limits of a multiprocessor: warps, programs, bytes of shared memory."""

    warps: int
    programs: int
    shared: int


LIMITS = {
    "sm_80": Limits(warps=64, programs=32, shared=164 * 1024),
    "sm_90": Limits(warps=64, programs=32, shared=228 * 1024),
    "sm_100": Limits(warps=64, programs=32, shared=228 * 1024),
}


class Occupancy(NamedTuple):
    """Programs and warps that run on a multiprocessor at once, and the resource that bounds them."""

    programs: int
    warps: int
    bound: str


def occupancy(target: str, *, warps: int, registers: int, shared: int) -> Occupancy:
    """The occupancy of a kernel with `warps` per program, `registers` per thread and `shared` bytes per program.

    It is the least of four numbers of programs:

        by registers      parts floor((2^16 / parts) / (256 ceil(32 registers / 256))) / warps
        by shared memory  the multiprocessor's / (the program's + 1 KiB)
        by threads        the warps that a multiprocessor holds / warps
        by programs       the programs that it holds

    Example:
        >>> occupancy("sm_90", warps=4, registers=64, shared=64)
        Occupancy(programs=8, warps=32, bound='registers')
    """
    limits = LIMITS[target]
    of_a_warp = -(-32 * max(registers, 1) // 256) * 256
    by = {
        "registers": REGISTERS // PARTS // of_a_warp * PARTS // warps,
        "shared memory": limits.shared // (shared + RESERVED),
        "threads": limits.warps // warps,
        "programs": limits.programs,
    }
    bound = min(by, key=by.get)
    return Occupancy(by[bound], by[bound] * warps, bound)
