#!/usr/bin/env bash
# A whole branch study in a few minutes: bundled data, a tiny model, plan, run, report.
#   make study-demo      or: bash examples/studies/run_demo.sh [FOLDER] [JOBS]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/study-demo}
jobs=${2:-2}
megatron_vlm=(${MEGATRON_VLM:-python -m megatron_vlm.cli.main})
sample=examples/sample_data
data=runs/study-demo-data
say() { printf '\n$ %s\n' "$*"; "$@"; }
prepared() { [ -f "$data/$1.idx" ]; }

mkdir -p "$data"
prepared text || say "${megatron_vlm[@]}" preprocess text --input "$sample/prose/train-*.jsonl.zst" \
  --tokenizer "$sample/tokenizer" --output "$data/text"
prepared captions || say "${megatron_vlm[@]}" preprocess image-text --input "$sample/images/train-*.tar" \
  --caption-key captions --caption-choice all --tokenizer "$sample/tokenizer" --output "$data/captions"
prepared unread || say "${megatron_vlm[@]}" preprocess text --input "$sample/prose/heldout.jsonl.zst" \
  --tokenizer "$sample/tokenizer" --output "$data/unread"
prepared new_style || say "${megatron_vlm[@]}" preprocess image-text --input "$sample/images/heldout-style-*.tar" \
  --tokenizer "$sample/tokenizer" --output "$data/new_style"

study=examples/studies/demo.yaml
say "${megatron_vlm[@]}" study plan "$study" --gpus 8
say "${megatron_vlm[@]}" study run "$study" --jobs "$jobs"
say "${megatron_vlm[@]}" study report "$study" --out "$folder/report"
