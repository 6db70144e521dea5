"""Evaluation by lm-evaluation-harness: `dllm eval`, and its models `llada`, `dream`, `bert` and others.

Importing this package makes the models known to lm-evaluation-harness, without loading them, torch or transformers.
Then they can be named in `simple_evaluate(model="llada", ...)`. `python -m dllm.core.eval` takes the command line of
`lm_eval run`, and `dllm eval MODEL --tasks ...` a shorter one.

    jobs, framing, gen_kwargs    requests, checked, as token ids
    generation, stopping         requests of unequal length to texts
    harness, models, config      the models of lm-evaluation-harness, their table, their settings
    ranks, journal, fingerprint  several processes; answers kept as they come
    plan, run, record            tasks checked beforehand; run one after the other; what is kept of them
    report, plot, command        what is shown; the command line
    settings, tasks              the published settings; tasks that lm-evaluation-harness does not hold
"""

import importlib.util

# the names, and the classes in dllm.core.eval.harness
MODEL_CLASSES = {
    "llada": "LLaDALM",
    "bert": "BertLM",
    "dream": "DreamLM",
    "a2d_mdlm": "A2DMDLMLM",
    "a2d_bd3lm": "A2DBD3LMLM",
    "fastdllm_llada": "FastDLLMLLaDALM",
    "fastdllm_dream": "FastDLLMDreamLM",
    "llada2": "LLaDA2LM",
    "rnd1": "RND1LM",
}


def _register() -> None:
    """Tell lm-evaluation-harness the names of the models; it imports a class when it is used."""
    if importlib.util.find_spec("lm_eval") is None:
        return  # the command says how to install it; what needs no lm_eval works without
    from lm_eval.api.registry import model_registry

    for name, model_class in MODEL_CLASSES.items():
        if name not in model_registry:
            model_registry.register(name, target=f"{__name__}.harness:{model_class}")


_register()
