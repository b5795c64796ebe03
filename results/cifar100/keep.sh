#!/usr/bin/env bash
# Copy the runs in progress from .evidence/ into results/cifar100/in_progress/, so that another checkout resumes them:
# config, log and the newest checkpoint of each. A finished run is left out; its weights and results have files of their own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
runs=$(git -C "$here" rev-parse --show-toplevel)/.evidence/runs
rm -rf "$here/in_progress"
for run in "$runs"/*/; do
  name=$(basename "$run")
  newest=$(ls "$run/checkpoints" 2>/dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1 || true)
  # A converted network has step 0; queue.sh converts it again.
  if [ -e "$run/results.json" ] || [ "${newest:-0}" = 0 ]; then continue; fi
  # CRD's memory of all images is 50 MB: a repository keeps every version of it.
  if [ "$(du -sm "$run/checkpoints/$newest" | cut -f 1)" -gt 8 ]; then
    echo "$name: step $newest is left out, since it is large"
    continue
  fi
  mkdir -p "$here/in_progress/$name/checkpoints"
  cp "$run"/config.json "$run"/metrics.jsonl "$run"/.identity "$here/in_progress/$name/" 2>/dev/null || true
  cp -r "$run/checkpoints/$newest" "$here/in_progress/$name/checkpoints/"
  echo "$name: step $newest"
done
