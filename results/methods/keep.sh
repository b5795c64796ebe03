#!/usr/bin/env bash
# Copy the finished runs of .evidence/methods/ into results/methods/runs.tar.xz, so that another checkout goes on from them:
# config, log and results of each, without weights. `results` makes the table from them. Paths are kept as @EVIDENCE@, @DATA@.
# Teachers are left out: without their weights they must be trained again.
#
#   results/methods/keep.sh DATA
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
evidence=$(git -C "$here" rev-parse --show-toplevel)/.evidence
data=$(cd "$1" && pwd)
draft=$(mktemp -d)
trap 'rm -rf "$draft"' EXIT
cd "$evidence/methods"
for results in $(find plain search sskd hsakd -name results.json 2> /dev/null | sort); do
  run=$(dirname "$results")
  [ -e "$run/config.json" ] || continue  # the results of a seed together
  mkdir -p "$draft/$run"
  cp "$results" "$run/metrics.jsonl" "$draft/$run/"
  sed -e "s#$evidence#@EVIDENCE@#g" -e "s#$data#@DATA@#g" "$run/config.json" > "$draft/$run/config.json"
done
tar -C "$draft" --sort=name --owner=0 --group=0 --mtime=@0 -cJf "$here/runs.tar.xz" .
echo "$(tar -tf "$here/runs.tar.xz" | grep -c results.json) runs, $(stat -c %s "$here/runs.tar.xz") bytes"
