"""Programs that download and prepare data and models: `python -m dllm.tools.<name> --help`."""
