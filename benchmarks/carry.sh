#!/usr/bin/env bash
# Pack what benchmarks.accelerator needs on a machine without network, in files of at most 52 MiB:
#
#   benchmarks/carry.sh DATA OUTPUT [EARLIER]
#
# DATA contains cifar100/3.0.2 and checkpoints/cifar100_resnet56-*.pt; EARLIER is the output of an earlier visit. OUTPUT,
# a folder that git ignores, gets carry.00, carry.01, ... Bring them to the machine, one per transfer if that has a limit,
# and add each to /tmp/carry.tar there: `cat OUTPUT/carry.00 >> /tmp/carry.tar`. The machine has Python 3.12, PyTorch, and
# JAX with its CUDA plug-in; PYTHON=3.13 sets another version. After the last file, in the checkout:
#
#   mkdir -p /tmp/carry && tar -xf /tmp/carry.tar -C /tmp/carry &&
#   python3 -m pip install -q --no-index --no-deps --target /tmp/site /tmp/carry/wheels/*.whl &&
#   PYTHONPATH=/tmp/site python3 -m benchmarks.accelerator --minutes 9 --data /tmp/carry/data --output DIR
#
# For the rows add --parts rows --teacher /tmp/carry/data/checkpoints/cifar100_resnet56-*.pt, and from the second visit
# on --earlier /tmp/carry/earlier.
set -euo pipefail
data=$(cd "$1" && pwd)
mkdir -p "$2"
output=$(cd "$2" && pwd)
earlier=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The package's requirements that such a machine lacks, each with those of its own.
wheels=(tensorflow-datasets==4.9.10 array_record==0.8.6 ml-collections==1.1.0 msgspec==0.23.0 importlib_resources==7.1.0
  promise==2.3 dm-tree==0.1.10 immutabledict==4.3.1 simple-parsing==0.1.9 docstring-parser==0.18.0
  tensorflow-metadata==1.21.0 googleapis-common-protos==1.76.0 toml==0.10.2 termcolor==3.3.0)
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
mkdir -p "$work/wheels" "$work/built" "$work/data/cifar100" "$work/data/checkpoints"
for wheel in "${wheels[@]}"; do
  python3 -m pip download -q --no-deps --python-version "${PYTHON:-3.12}" --implementation cp --only-binary=:all: \
    "${platforms[@]}" -d "$work/wheels" "$wheel" 2>> "$work/log" && continue
  # A package without wheels, such as promise, is built here: for any Python, or it is of no use there.
  python3 -m pip wheel -q --no-deps -w "$work/built" "$wheel" 2>> "$work/log" || { cat "$work/log" >&2; exit 1; }
  mv "$work"/built/*-none-any.whl "$work/wheels/"
done
rm -r "$work/built" "$work/log"
cp -r "$data/cifar100/3.0.2" "$work/data/cifar100/"
cp "$data"/checkpoints/cifar100_resnet56-*.pt "$work/data/checkpoints/"
git -C "$(dirname "$0")" rev-parse HEAD > "$work/data/commit"
if [ -n "$earlier" ]; then mkdir "$work/earlier"; cp "$earlier"/visit.tar.* "$work/earlier/"; fi
rm -f "$output"/carry.*
tar -C "$work" -cf - . | split -b 52M -d - "$output/carry."
ls -l "$output"
