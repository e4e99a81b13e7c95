#!/usr/bin/env bash
# The mini study from nothing to its report: fetch, build, tokenizer, datasets, plan, run, report. What is done is not done again.
#   bash examples/mini_study/run.sh [JOBS]
set -euo pipefail
cd "$(dirname "$0")/../.."
jobs=${1:-2}
here=examples/mini_study
data=runs/mini-study-data
made=$data/made
megatron_vlm=(${MEGATRON_VLM:-python -m megatron_vlm.cli.main})
say() { printf '\n$ %s\n' "$*"; "$@"; }
prepared() { [ -f "$made/$1.idx" ]; }

[ -f "$data/manifest.json" ] || say ${PYTHON:-python} "$here/build.py" --out "$data"
[ -f "$data/tokenizer/tokenizer.json" ] || say "${megatron_vlm[@]}" train-tokenizer --text "$data/text/train.jsonl.zst" \
  --image-text "$data/images/train-*.tar" --vocab-size 4096 --output "$data/tokenizer"
preprocess() { # KIND NAME OPTIONS...
  local kind=$1 name=$2
  shift 2
  prepared "$name" || say "${megatron_vlm[@]}" preprocess "$kind" --tokenizer "$data/tokenizer" --output "$made/$name" "$@"
}
preprocess text text --input "$data/text/train.jsonl.zst"
preprocess text unread --input "$data/text/heldout.jsonl.zst"
prepared unread_quarter || say "${megatron_vlm[@]}" sample "$made/unread" --fraction 0.25 --output "$made/unread_quarter"  # measured often
preprocess image-text captions --input "$data/images/train-*.tar" "$data/images/clips-*.tar" \
  --caption-key captions --caption-choice sample
preprocess image-text grids --input "$data/images/grids-*.tar"
preprocess image-text new_style --input "$data/images/heldout-style-*.tar"
preprocess image-text new_concepts --input "$data/images/heldout-concepts-*.tar"
preprocess conversations talk --input "$data/talk/conversations.json" --images "$data/talk/pictures.tar" --template "$here/template.yaml"

say "${megatron_vlm[@]}" study plan "$here/study.yaml" --gpus 1
say "${megatron_vlm[@]}" study run "$here/study.yaml" --jobs "$jobs"
say "${megatron_vlm[@]}" study report "$here/study.yaml" --out runs/mini-study/report
