#!/usr/bin/env bash
# Train the rows of results/cifar100.md one after the other, at the lowest priority, and resume where the last call ended.
#
#   results/cifar100/queue.sh DATA [ROW...]
#
# DATA: the folder that contains cifar100/3.0.2 and, for all rows but the baselines, the teacher
#   checkpoints/cifar100_resnet56-f2eff4c8.pt, a file of the releases of github.com/chenyaofo/pytorch-cifar-models.
# ROW: such as kd_short. Without one, all rows whose weights are not in results/cifar100.
#
# Where two cores share no cache, two queues with different rows, each on one core (`taskset`), do the most.
# It uses a clone and an environment of its own in .evidence/, at the commit in results/cifar100/commit, so that work on
# the code does not change a run. `results/cifar100/keep.sh` copies runs in progress into the repository, and `finish.py` the
# weights and results of finished ones.
set -euo pipefail
names="baseline baseline_short baseline_short_seed1 baseline_short_seed2 kd_short dkd_short crd_short"
names+=" teacher_frozen student_frozen_short kd"
here=$(cd "$(dirname "$0")" && pwd)
root=$(git -C "$here" rev-parse --show-toplevel)
data=$(cd "$1" && pwd)
shift
rows=$*
for name in $rows; do
  if [[ " $names " != *" $name "* ]]; then echo "no row $name: choose from $names" >&2; exit 2; fi
done
# A run's config contains its paths. They are the same in all checkouts, so that one goes on with another's runs.
evidence=/tmp/hsakd_evidence
mkdir -p "$root/.evidence/runs"
if [ -e "$evidence" ] && [ "$(readlink -f "$evidence")" != "$(readlink -f "$root/.evidence")" ]; then
  echo "$evidence belongs to $(readlink -f "$evidence"): end what trains there, then remove $evidence" >&2
  exit 2
fi
ln -sfn "$root/.evidence" "$evidence"
ln -sfn "$data" "$evidence/data"
data=$evidence/data
exec 9> "$evidence/.setup"
flock 9  # of two queues that start together
if [ ! -d "$evidence/clone" ]; then
  rm -rf "$evidence/clone.part"
  git clone -q "$root" "$evidence/clone.part"
  git -C "$evidence/clone.part" checkout -q "$(cat "$here/commit")"
  mv "$evidence/clone.part" "$evidence/clone"
fi
if [ ! -x "$evidence/env/bin/python" ]; then
  python3 -m venv "$evidence/env"
  "$evidence/env/bin/pip" install -q -e "$evidence/clone"
fi
for kept in "$here"/in_progress/*/; do  # runs that an earlier checkout began
  [ -d "$kept" ] && [ ! -d "$evidence/runs/$(basename "$kept")" ] && cp -r "$kept" "$evidence/runs/"
done
flock -u 9
# Where Linux groups processes by session, `nice` counts within a group only. A group of its own (`setsid`) is made nice.
if [ -w /proc/self/autogroup ] && [ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ]; then echo 19 > /proc/self/autogroup; fi
cd "$evidence/clone"

short=(--config.student.epochs=30 --config.student.milestones='(18,23,26)')
teacher=$evidence/runs/resnet56
kd=(--config.teacher.workdir="$teacher" --config.objective.kd.task.weight=0.1 --config.objective.kd.kl.weight=0.9
  --config.objective.kd.kl.temperature=4.0)
frozen=$evidence/runs/teacher_frozen

import_teacher() {  # the published ResNet-56 as a run (its mean and std are within 0.0005 of the config's)
  local file=$data/checkpoints/cifar100_resnet56-f2eff4c8.pt
  if [ ! -e "$file" ]; then
    echo "no teacher $file: download it, see the first lines of this script" >&2
    exit 2
  fi
  flock 9
  if [ ! -e "$teacher/config.json" ]; then
    "$evidence/env/bin/pip" install -q torch==2.13.0
    nice -n 19 ../env/bin/python -m hsakd_jax.convert "$file" --data=cifar100 --output="$teacher"
  fi
  flock -u 9
}

row() {  # NAME RECIPE FLAGS...: train one row, or skip it if it is done
  local name=$1 recipe=$2
  shift 2
  [ -z "$rows" ] || [[ " $rows " == *" $name "* ]] || return 0
  local run=$evidence/runs/$name
  if [ -e "$run/results.json" ]; then echo "$name: done, in $run"; return; fi
  # The frozen teacher's weights teach no student: its branches are not among them.
  if [ -z "$rows" ] && [ -e "$here/$name.json" ] && [ "$run" != "$frozen" ]; then
    echo "$name: done, in $here"
    return
  fi
  if [[ "$*" == *"=$teacher"* ]]; then import_teacher; fi
  if [[ "$*" == *"=$frozen"* ]] && [ ! -e "$frozen/results.json" ]; then
    echo "$name needs teacher_frozen, which is not finished: train that row first" >&2
    exit 2
  fi
  echo "$name: training, see $evidence/$name.log"
  printf '%s\t%s\tstart\n' "$(date -Is)" "$name" >> "$evidence/times.tsv"
  nice -n 19 ../env/bin/python -m hsakd_jax.main --config="configs/cifar100.py:$recipe" --workdir="$run" \
    --config.data.dir="$data" --config.eval_every=10 "$@" >> "$evidence/$name.log" 2>&1 || {
    local status=$?
    tail -n 1 "$evidence/$name.log" >&2
    exit $status
  }
  printf '%s\t%s\tend\n' "$(date -Is)" "$name" >> "$evidence/times.tsv"
}

row baseline baseline/resnet20
row baseline_short baseline/resnet20 "${short[@]}"
row baseline_short_seed1 baseline/resnet20 "${short[@]}" --config.seed=1
row baseline_short_seed2 baseline/resnet20 "${short[@]}" --config.seed=2
row kd_short kd/resnet56/resnet20 "${short[@]}" "${kd[@]}"
row dkd_short dkd/resnet56/resnet20 "${short[@]}" --config.teacher.workdir="$teacher" --config.objective.dkd.dkd.beta=2.0
row crd_short crd/resnet56/resnet20 "${short[@]}" --config.teacher.workdir="$teacher"
row teacher_frozen teacher_frozen/resnet56 --config.frozen.init="$teacher" \
  --config.frozen.epochs=10 --config.frozen.milestones='(4,7,9)'
row student_frozen_short student_frozen/resnet56/resnet20 "${short[@]}" --config.teacher.workdir="$frozen"
row kd kd/resnet56/resnet20 "${kd[@]}"
