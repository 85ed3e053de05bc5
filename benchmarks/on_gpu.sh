#!/usr/bin/env bash
# Correctness first, then speed, of one GPU, as one Markdown page that names the card.
#
#   bash benchmarks/on_gpu.sh [--out gpu.md] [--minutes 8] [--sections checks step ...] [--tiny]
#
# It needs torch with CUDA, the packages of requirements.txt and nothing from a network; PYTHON chooses the interpreter.
# What that machine lacks travels as wheels, which one of the same Python and platform fetches:
#   pip download -d wheels datasets evaluate faiss-cpu
#   pip install --no-index --find-links wheels datasets evaluate faiss-cpu    # there
# Without a GPU, --tiny rehearses every section on a CPU in about a minute; its figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu_page.py "$@"
