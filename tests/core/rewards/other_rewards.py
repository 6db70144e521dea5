"""Rewards that misbehave, in a module that the process of the rewards imports: it must not load torch."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time


def endless(completions, **columns):
    while True:
        pass


def sleeping(completions, **columns):
    time.sleep(1000)


def hanging_in_c(completions, **columns):
    return [float(re.match("(a+)+$", "a" * 64 + "b") is None)]  # signals wait until it returns


def leaves_a_process(completions, **columns):
    """A process that holds the streams of its parent, and a loop."""
    if os.fork() == 0:
        time.sleep(1000)
    return endless(completions)


def crashing(completions, **columns):
    os._exit(3)


def exiting(completions, **columns):
    sys.exit("no more")


def raising(completions, **columns):
    return [columns["nothing"]]


def brief(completions):
    return [1.0 / len(text) for text in completions]


def ordered(completions, **columns):
    """Depends on the order of a set and on random numbers."""
    return [float(next(iter({"a", "b", "c", "d", "e", "f"})) == "a") + random.random() for _ in completions]


def reading(completions, **columns):
    """Prints, and reads from where a terminal would be."""
    print("seen by a reward")
    subprocess.run(["echo", "seen by its process"])
    return [float(len(sys.stdin.read()))]


def loaded(completions, **columns):
    return [float("torch" in sys.modules or "transformers" in sys.modules)]
