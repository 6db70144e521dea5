"""LoRA by peft with the model's own loss from labels, and the one line that makes it faster.

The adapters are on the attention; one on the head itself would make it another function, and the patch says so.

    python examples/dropin/peft_lora.py [--model PATH] [--steps 8]
"""

import torch
from peft import LoraConfig, get_peft_model
from tiny import arguments, model_and_tokens

import dllm.fast


def main(argv=None):
    options = arguments(__doc__, argv)
    model, ids, mask_id = model_and_tokens(options.model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"], lora_dropout=0.05))
    dllm.fast.patch(model)  # the one line
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(options.steps):
        masked = torch.rand(ids.shape) < 0.3
        loss = model(input_ids=ids.masked_fill(masked, mask_id), labels=ids.masked_fill(~masked, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
