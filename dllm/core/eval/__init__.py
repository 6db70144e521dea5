"""Evaluation by lm-evaluation-harness: `dllm eval`, and its models `llada`, `dream`, `bert` and others.

Importing this package makes the models known to lm-evaluation-harness, without loading them, torch or transformers.
Then they can be named in `simple_evaluate(model="llada", ...)`. `python -m dllm.core.eval` takes the command line of
`lm_eval run`, and `dllm eval MODEL --tasks ...` a shorter one.

    jobs, encoding, framing, gen_kwargs   requests, checked, as token ids
    generation, stopping                  requests of unequal length to texts
    harness, model_classes, models        the models of lm-evaluation-harness, and their table
    config, arguments                     their settings; the command line's words
    answering, journal, fingerprint       answers by the model, kept as they come
    ranks, usage, progress                several processes; what requests cost; the bar
    plan, run, dry_run, record            tasks checked beforehand; run one after the other; what is kept of them
    scores, plot, command                 what is shown; the command line
    settings, tasks                       the published settings; tasks that lm-evaluation-harness does not hold
"""

import importlib.util

# the names, and the classes in dllm.core.eval.model_classes
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
    "diffusiongemma": "DiffusionGemmaLM",
    "nemotron_diffusion": "NemotronDiffusionLM",
}


def _register() -> None:
    """Tell lm-evaluation-harness the names of the models; it imports a class when it is used."""
    if importlib.util.find_spec("lm_eval") is None:
        return  # the command says how to install it; what needs no lm_eval works without
    from lm_eval.api.registry import model_registry

    for name, model_class in MODEL_CLASSES.items():
        if name not in model_registry:
            model_registry.register(name, target=f"{__name__}.model_classes:{model_class}")


_register()
