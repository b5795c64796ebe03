#!/usr/bin/env bash
# Train the table of results/methods.md: all methods at small scale, ResNet-56 -> ResNet-20, and resume where it ended.
#
#   results/methods/queue.sh DATA [PART...]        DATA: the folder that holds cifar100/3.0.2; PART: search, plain, hsakd
#
# `keep.sh` copies what is finished into the repository, and another checkout's queue begins with that.
# It uses a clone of the project at the commit in results/methods/commit, and an environment, in .evidence/, so that work on
# the code does not change a run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(git -C "$here" rev-parse --show-toplevel)
data=$(cd "$1" && pwd)
shift
parts=${*:-search plain hsakd}
evidence=$root/.evidence
clone=$evidence/methods_clone
runs=$evidence/methods
env=$evidence/methods_env
python=$env/bin/python
mkdir -p "$runs"
exec 9> "$runs/.setup"
flock 9  # two queues with different parts may start together
if [ ! -d "$clone" ]; then
  git clone -q "$root" "$clone"
  git -C "$clone" checkout -q "$(cat "$here/commit")"
  # The teacher is measured once a command and without its branches, the best epoch once if it is the last. No step changes.
  git -C "$clone" apply "$here/faster_evaluation.patch"
fi
if [ ! -x "$python" ]; then
  python3 -m venv "$env"
  "$env/bin/pip" -qq install -e "$clone"
fi
if [ ! -e "$runs/plain" ] && [ -e "$here/runs.tar.xz" ]; then  # runs of an earlier checkout
  tar -C "$runs" -xf "$here/runs.tar.xz"
  find "$runs" -name config.json -exec sed -i -e "s#@EVIDENCE@#$evidence#g" -e "s#@DATA@#$data#g" {} +
fi
cd "$clone"
export PYTHONPATH=$clone

# A tenth of the training images; 3 epochs that end with a learning rate of 0, as 240 published ones nearly do.
small=(--config.data.dir="$data" --config.data.fraction=0.1 --config.eval_every=3 --config.log_every=39)
short=(--config.student.epochs=3 --config.student.batch=32 --config.student.schedule=cosine
  --config.student.milestones='()')
train() { "$python" -m hsakd_jax.main "$@" >> "$runs/log" 2>&1; }

teacher=$runs/resnet56
if [ ! -d "$teacher" ]; then
  "$env/bin/pip" -qq install torch==2.13.0
  "$python" -m hsakd_jax.convert "$data"/checkpoints/cifar100_resnet56-*.pt --data=cifar100 --output="$teacher" \
    >> "$runs/log" 2>&1
fi
flock -u 9
# Its branches: 3 epochs on the frozen backbone.
branches=$runs/teacher_frozen
[ "$parts" = plain ] || [ -e "$branches/results.json" ] || train --config=configs/cifar100.py:teacher_frozen/resnet56 --workdir="$branches" \
  "${small[@]}" --config.frozen.init="$teacher" --config.frozen.epochs=3 --config.frozen.batch=32 \
  --config.frozen.schedule=cosine --config.frozen.milestones='()'

# Weights of HSAKD's terms combined with newer ones: 2 epochs of 5,000 images, measured on 25,000 other training images.
search() {  # NAME RECIPE FLAGS...
  local name=$1 recipe=$2
  shift 2
  [ -e "$runs/search/$name/results.json" ] || train --config="configs/cifar100.py:$recipe/resnet56/resnet20" \
    --workdir="$runs/search/$name" "${small[@]}" "${short[@]}" --config.teacher.workdir="$branches" \
    --config.data.fraction=0.2 --config.data.validation=0.5 --config.seed=9 --config.student.epochs=2 \
    --config.eval_every=2 "$@"
}
kls() { echo "--config.objective.$1.kl_aux.$2=$3 --config.objective.$1.kl_final.$2=$3"; }
if [[ " $parts " == *" search "* ]]; then
  search student student
  for weight in 0.3 1 3 9; do
    search "ls_$weight" student_ls $(kls student_ls weight "$weight")
  done
  for weight in 0.06 0.125 0.25 0.5 1 2; do
    search "dist_$weight" student_dist --config.objective.student_dist.dist.weight="$weight" \
      --config.objective.student_dist.dist_aux.weight="$weight"
  done
  for weight in 0.3 1; do
    search "strong_$weight" student_strong --config.objective.student_strong.strong_task.weight="$weight"
  done
fi

# Published warm-ups and decays, scaled from 240 epochs to 3.
scaled=(--config.objective.dkd.dkd.warmup=0 --config.objective.dkd_ls.dkd.warmup=0 --config.objective.rld.rld.warmup=0
  --config.objective.reviewkd.reviewkd.warmup=0 --config.objective.wkd_l.wkd_l.decay=2
  --config.objective.wkd_f.wkd_f.decay=2)
if [[ " $parts " == *" plain "* ]]; then
  train --config=configs/cifar100.py:kd/resnet56/resnet20 --workdir="$runs/plain" "${small[@]}" "${short[@]}" \
    "${scaled[@]}" --config.teacher.workdir="$teacher" --config.seeds='(0,1,2)' \
    --config.runs="('baseline','kd','fitnet','at','vid','rkd','sp','cc','pkt','crd','dkd','kd_ls','dkd_ls','dist','rld','ttm','wttm','nkd','ofa','wkd_l','wkd_f','reviewkd','simkd','mlld','mlld_ls','crld')"
fi
if [[ " $parts " == *" hsakd "* ]]; then
  # The weights that the search found best.
  read -r -d '' -a found < <("$python" "$here/search.py" "$runs/search" --flags) || true
  head=$runs/sskd_teacher
  [ -e "$head/results.json" ] || train --config=configs/cifar100.py:sskd_teacher/resnet56 --workdir="$head" \
    "${small[@]}" --config.head.init="$teacher" --config.head.epochs=3 --config.head.batch=32 \
    --config.head.schedule=cosine --config.head.milestones='()'
  train --config=configs/cifar100.py:sskd/resnet56/resnet20 --workdir="$runs/sskd" "${small[@]}" "${short[@]}" \
    --config.teacher.workdir="$head" --config.seeds='(0,1,2)'
  train --config=configs/cifar100.py:student_frozen/resnet56/resnet20 --workdir="$runs/hsakd" "${small[@]}" \
    "${short[@]}" "${found[@]}" --config.teacher.workdir="$branches" --config.seeds='(0,1,2)' \
    --config.runs="('student_frozen','student_ls','student_dist','student_strong')"
fi
