"""`python -m dllm.demo`: the main job on real weights and real text, then a short benchmark. Runs from a clone."""
