#!/usr/bin/env bash
# What there is to measure on one NVIDIA GPU, in commands of under ten minutes each, the most wanted first:
#
#     bash experiments/gpu.sh small out/gpu     # tests; XLA's settings; SD 1.5's picture against torch.compile
#     bash experiments/gpu.sh large out/gpu     # SDXL's
#     bash experiments/gpu.sh train out/gpu     # training: Stable Diffusion 2's base at 512, SDXL at 1024
#
# Needs jax with CUDA, torch with CUDA, flax, diffusers, transformers, pytest. Each part ends at its own limit, and what
# was measured by then lies in the folder. The whole table, which takes hours, most of them torch.compile's:
#
#     python3 -m experiments.benchmark --suite=gpu --out=gpu.json
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?small, large or train} out=${2:?a folder for the results}
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
train)
  cost="python3 -m experiments.train_cost --sides=ours --rounds=1 --steps=10 --dtype=bfloat16"
  timeout 200 $cost --model=sd21_base --size=512 --batch=32 2>&1 | tail -5 | tee "$out/train_sd2.txt"
  timeout 120 $cost --model=sd21_base --size=512 --batch=32 --ways=full --remat 2>&1 | tail -5 | tee "$out/train_remat.txt"
  timeout 250 $cost --model=sdxl --size=1024 --batch=8 --ways=full --remat 2>&1 | tail -5 | tee "$out/train_sdxl.txt"
  ;;
*)
  echo "gpu.sh: the part is small, large or train, not $part" >&2
  exit 2
  ;;
esac
