"""Estimates before anything runs: what training and sampling take, from a configuration alone, on fake tensors."""
