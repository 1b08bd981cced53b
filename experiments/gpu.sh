#!/usr/bin/env bash
# What there is to measure on one NVIDIA GPU, in two commands of under ten minutes each, the most wanted first:
#
#     bash experiments/gpu.sh small out/gpu     # tests; XLA's settings; SD 1.5's picture against torch.compile
#     bash experiments/gpu.sh large out/gpu     # SDXL's
#
# Needs jax with CUDA, torch with CUDA, flax, diffusers, transformers, pytest. Each part ends at its own limit, and what
# was measured by then lies in the folder. The whole table, which takes hours, most of them torch.compile's:
#
#     python3 -m experiments.benchmark --suite=gpu --out=gpu.json
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?small or large} out=${2:?a folder for the results}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv | tee "$out/device.txt"

case $part in
small)
  timeout 90 python3 -m pytest tests/test_convolution.py tests/test_guidance.py 2>&1 | tail -5 | tee "$out/tests.txt"
  timeout 240 python3 -m experiments.gpu_flags --limit=45 --seconds=190 --out="$out/flags.json"
  timeout 250 python3 -m experiments.benchmark --rows=picture --limit=220 --out="$out/sd15.json"
  ;;
large)
  timeout 280 python3 -m experiments.benchmark --family=sdxl --rows=picture --steps=30 --limit=250 --out="$out/sdxl.json"
  timeout 250 python3 -m experiments.benchmark --family=sdxl --rows=picture --batch=8 --limit=230 --out="$out/sdxl_8.json"
  ;;
*)
  echo "gpu.sh: the part is small or large, not $part" >&2
  exit 2
  ;;
esac
