"""Requests that arrive by themselves: what is asked and when, engine and servers that answer, and what came of it."""
