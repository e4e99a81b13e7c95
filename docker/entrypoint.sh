#!/usr/bin/env bash
# Runs any command in the image: `torchrun examples/pretrain_vlm_1b.sh`, `megatron-vlm ...`, `bash`.
# examples/ and tools/ are the image's own where the working folder has none of that name. NVIDIA's entrypoint, which prints the
# notes of its release, comes before where it is there.
set -euo pipefail

home=${MEGATRON_VLM_HOME:-/opt/megatron-vlm}
command=()
for word in "$@"; do
  case "$word" in
    examples/* | tools/*) if [ ! -e "$word" ] && [ -e "$home/$word" ]; then word="$home/$word"; fi ;;
  esac
  command+=("$word")
done
before=${NVIDIA_ENTRYPOINT:-/opt/nvidia/nvidia_entrypoint.sh}
if [ -x "$before" ]; then
  exec "$before" "${command[@]}"
fi
exec "${command[@]}"
