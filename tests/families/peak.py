"""Print the growth of this process's memory while a checkpoint loads: at its peak, and what the model keeps, in bytes.

python tests/families/peak.py FOLDER DTYPE
"""

import ctypes
import gc
import sys
import threading
import time

import torch

from dllm.models import get_model


def resident() -> int:
    """Bytes of this process in memory, pages of mapped files included."""
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4096


def main() -> None:
    folder, dtype, warm = sys.argv[1:]
    get_model(model_name_or_path=warm, dtype=dtype)  # what is imported and allocated once
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, done = resident(), 0, False

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = get_model(model_name_or_path=folder, dtype=dtype)
    done = True
    watcher.join()
    size = sum(tensor.nbytes for tensor in {id(t): t for t in model.parameters()}.values())
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    print(peak - before, size)


if __name__ == "__main__":
    main()
