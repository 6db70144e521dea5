"""An accelerate loop with gradient accumulation and checkpointing, and the one line that makes it faster.

python examples/dropin/accelerate_loop.py [--model PATH] [--steps 8]
accelerate launch examples/dropin/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from tiny import arguments, model_and_tokens
from torch.utils.data import DataLoader

import dllm.fast


def main(argv=None):
    options = arguments(__doc__, argv)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, ids, mask_id = model_and_tokens(options.model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    dllm.fast.patch(model)  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(ids, batch_size=4))
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    while len(losses) < options.steps:
        for batch in loader:
            with accelerator.accumulate(model):
                masked = torch.rand(batch.shape, device=batch.device) < 0.3
                logits = model(input_ids=batch.masked_fill(masked, mask_id)).logits
                labels = batch.masked_fill(~masked, -100)
                loss = criterion(logits.view(-1, logits.size(-1)), labels.view(-1))
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            accelerator.print(f"step {len(losses)}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
