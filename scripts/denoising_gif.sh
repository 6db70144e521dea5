#!/usr/bin/env bash
# Remake docs/denoising.gif: the shipped model answers a word problem, one token a step, and the chat saves its steps.
set -euo pipefail
cd "$(dirname "$0")/.."
question="Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour."
question+=" How many kilometers can she run in 8 hours?"
rm -f docs/denoising.gif # the chat overwrites nothing
printf '%s\n' "$question" "/save docs/denoising.gif" | .venv/bin/dllm chat --live --gen-length 56 --seed 0
