"""Programs that prepare data and models: `python -m dllm.tools.<name> --help`."""
