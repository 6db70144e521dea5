"""The denoising loop: which positions a step may commit, what it proposes there, and what it keeps for the next."""
