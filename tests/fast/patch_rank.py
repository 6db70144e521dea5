"""One of two processes that train a model, patched and not, under every wrapper: python -m tests.fast.patch_rank DIR"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dllm.fast import patch
from dllm.fast.deferred import DeferredLogits
from tests import launch
from tests.fast.test_masked_loss import model_of
from tests.models import make_prompt

CPU = torch.device("cpu")
STEPS = 2


def batch_of(rank: int, step: int):
    ids = make_prompt(model_of(), 2, 9, seed=10 * step + rank)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(10 * step + rank)) < 0.5
    return ids, mask


def loss_of(model, ids, mask, real: bool = False):
    logits = model(ids).logits
    loss = F.cross_entropy(logits[mask], ids[mask], reduction="none").sum() / 5
    loss = loss + F.cross_entropy(logits.transpose(1, 2), ids)
    return logits, loss + 0.01 * logits.square().mean() if real else loss


def sharded(model, *, parts=(), **options):
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model.bert.encoder.layer, *parts):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, **options)


def untied():
    return model_of(tie_word_embeddings=False)


# Name: a model, and what wraps it.
CASES = {
    "ddp": (model_of, DistributedDataParallel),
    "ddp, unused parameters": (model_of, lambda model: DistributedDataParallel(model, find_unused_parameters=True)),
    "ddp, static graph": (model_of, lambda model: DistributedDataParallel(model, static_graph=True)),
    "fsdp2": (model_of, sharded),
    "fsdp2, root resharded": (model_of, lambda model: sharded(model, reshard_after_forward=True)),
    "fsdp2, head by itself": (untied, lambda model: sharded(model, parts=[model.cls.predictions.decoder])),
    "fsdp1": (
        untied,
        lambda model: FullyShardedDataParallel(model, use_orig_params=True, device_id=CPU),
    ),
}


def gradients(model) -> dict:
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            found[name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")] = gradient.clone()
    return found


def trained(case: str, when: str, real: bool) -> dict:
    """Gradients of each step, summed over steps, and whether logits were deferred; or what was refused."""
    make, wrap = CASES[case]
    model = make()
    if when == "before":
        patch(model)
    model = wrap(model)
    try:
        if when == "after":
            patch(model)
        for step in range(STEPS):
            logits, loss = loss_of(model, *batch_of(dist.get_rank(), step), real)
            loss.backward()
    except (RuntimeError, ValueError) as error:
        return {"refused": str(error)}
    return {"gradients": gradients(model), "deferred": isinstance(logits, DeferredLogits)}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        for when in ("never", "before", "after"):
            for real in (False, True):
                found[case, when, real] = trained(case, when, real)
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    launch.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
