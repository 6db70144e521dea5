"""Baselines: the sampling loops that the authors of each method publish, in plain PyTorch.

Every step stores the logits of the whole canvas, draws noise in float64, takes softmax over every position, and loops
over the rows in Python with a host sync in each. They are not tuned: this is what a user of the published programs
runs. The model card's loop is ``benchmarks.card_loop``.

    mdlm.py       MDLMSampler of dLLM 0.1
    llada.py      LLaDA's generate
    dream.py      Dream's diffusion_generate: origin, maskgit_plus, topk_margin, entropy
    parallel.py   as many tokens per step as a rule allows: threshold, factor, LLaDA 2.0, entropy bound (approximate)
    fast_dllm.py  Fast-dLLM's generate with a prefix or dual cache (approximate)
    nemotron_diffusion.py   blocks over a causal cache, each after an autoregressive first token
    edit_flows.py dLLM 0.1's Edit Flows, one text at a time, and its training loss

All take `noise`, the source of random numbers (None: torch's generator), and `mark`, called with "head" when the tokens
of a step are chosen and with "transfer" when they are committed. Each call of the model is one forward pass.
"""
