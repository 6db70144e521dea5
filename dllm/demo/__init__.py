"""The bundled model: its weights, how to load it, and answering questions with it; `training/` made and measures it."""
