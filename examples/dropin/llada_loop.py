"""A hand-written loop in LLaDA's manner, mask with p and divide by p, and the one line that makes it faster.

python examples/dropin/llada_loop.py [--model PATH] [--steps 8]
"""

import torch
import torch.nn.functional as F
from tiny import arguments, model_and_tokens

import dllm.fast


def corrupt(ids, mask_id, smallest=1e-3):
    p = (torch.rand(len(ids), 1) * (1 - smallest) + smallest).expand(ids.shape)
    masked = torch.rand(ids.shape) < p
    return ids.masked_fill(masked, mask_id), masked, p


def main(argv=None):
    options = arguments(__doc__, argv)
    model, ids, mask_id = model_and_tokens(options.model)
    dllm.fast.patch(model)  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(options.steps):
        noisy, masked, p = corrupt(ids, mask_id)
        logits = model(noisy).logits
        token_loss = F.cross_entropy(logits[masked], ids[masked], reduction="none") / p[masked]
        loss = token_loss.sum() / ids.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
