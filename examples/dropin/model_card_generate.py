"""The sampling loop that model cards print, in float64 as they do, and the one line that makes it faster.

argmax and the confidence of its tokens come out of one product with the head, and no logits are stored. With a
temperature above 0 the loop's own noise needs them all, and the log says so; `dllm.fast.generate` does not.

    python examples/dropin/model_card_generate.py [--model PATH] [--steps 8]
"""

import torch
import torch.nn.functional as F
from tiny import arguments, model_and_tokens

import dllm.fast


def with_gumbel_noise(logits, temperature):
    if temperature == 0:
        return logits
    logits = logits.to(torch.float64)
    noise = (-torch.log(torch.rand_like(logits))) ** temperature
    return logits.exp() / noise


@torch.no_grad()
def generate(model, prompt, mask_id, steps=8, gen_length=16, block_length=8, temperature=0.0):
    x = F.pad(prompt, (0, gen_length), value=mask_id)
    steps_per_block = steps * block_length // gen_length
    for start in range(prompt.shape[1], x.shape[1], block_length):
        for step in range(steps_per_block):
            masked = x == mask_id
            logits = model(x).logits
            proposal = torch.argmax(with_gumbel_noise(logits, temperature), dim=-1)
            probabilities = F.softmax(logits.to(torch.float64), dim=-1)
            confidence = torch.gather(probabilities, -1, proposal.unsqueeze(-1)).squeeze(-1)
            confidence[~masked] = -torch.inf
            confidence[:, start + block_length :] = -torch.inf
            left = masked[:, start : start + block_length].sum(1)
            for row in range(len(x)):
                count = -(-int(left[row]) // (steps_per_block - step))
                surest = confidence[row].topk(count).indices
                x[row, surest] = proposal[row, surest]
    return x


def main(argv=None):
    options = arguments(__doc__, argv)
    model, ids, mask_id = model_and_tokens(options.model)
    model.eval()
    dllm.fast.patch(model)  # the one line
    canvas = generate(model, ids[:4, :12], mask_id, steps=options.steps)
    print(canvas[:, 12:])
    return canvas.tolist()


if __name__ == "__main__":
    main()
