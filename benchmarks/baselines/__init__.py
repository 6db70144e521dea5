"""Baselines: sampling loops as the authors of each method write them, in plain PyTorch.

Every step keeps the logits of the whole canvas, draws noise in float64, takes softmax over every position, sorts where
a rule speaks of order, and walks over the rows in Python with a wait for the device in each. Written to be read, not
tuned: this is what a user of the published programs runs. The model card's own loop is ``benchmarks.card_loop``.

    mdlm.py       MDLMSampler of dLLM 0.1
    llada.py      LLaDA's generate
    dream.py      Dream's diffusion_generate: origin, maskgit_plus, topk_margin, entropy
    parallel.py   as many tokens a forward as a rule allows: threshold, factor, LLaDA 2.0's, entropy bound (approximate)

All take `noise`, where random numbers come from (None: torch's generator), and `mark`, called with "head" when a step's
tokens are chosen and with "transfer" when they stand in the canvas; each canvas that the model is called with is one
forward pass.
"""
