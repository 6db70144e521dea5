"""A quicker C++ compiler: the one of this machine, at -O1 where -O3 is asked for, which reads the header that all of
csrc/ includes once.

With -ffp-contract=off no rounding depends on the level, so what is computed is the same.
"""

from __future__ import annotations

from pathlib import Path

from dllm_kernels import _extension

# GCC takes common.h.gch for common.h where it is included first; its `#pragma once` then holds for the one in csrc/.
SCRIPT = """#!/bin/bash
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compiler=({compiler} {flags})
arguments=("${{@/%-O3/-O1}}") header=()
for argument in "${{arguments[@]}}"; do
  case $argument in
    *.cpp) common=$(dirname "$argument")/common.h ;;
    -[DIOfms]*) [[ $argument == -shared ]] || header+=("$argument") ;;
  esac
done
if [[ -f $common ]] && "${{compiler[@]}}" --version | grep -q "Free Software Foundation"; then
  "${{compiler[@]}}" "${{header[@]}}" -x c++-header "$common" -o "$folder/common.h.gch"
  arguments=(-include "$folder/common.h" "${{arguments[@]}}")
fi
"${{compiler[@]}}" "${{arguments[@]}}"
"""


def quick(folder: Path, flags: str) -> str:
    """The path of a script in `folder` that calls the compiler with `flags` as well."""
    script = folder / "quick-compiler"
    script.write_text(SCRIPT.format(compiler=_extension.find_compiler(), flags=flags))
    script.chmod(0o755)
    return str(script)
