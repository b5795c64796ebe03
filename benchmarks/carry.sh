#!/usr/bin/env bash
# Pack what benchmarks.accelerator needs on a machine without network, in files of at most 52 MiB:
#
#   benchmarks/carry.sh DATA OUTPUT [EARLIER]
#
# DATA contains cifar100/3.0.2 and checkpoints/cifar100_resnet56-*.pt; EARLIER is the output of an earlier visit. OUTPUT
# gets carry.00, carry.01, ... The machine has Python 3.12, PyTorch and JAX with its CUDA plug-in; PYTHON=3.13 sets
# another version. On the machine, in the checkout, with the files brought there one by one:
#
#   cat OUTPUT/carry.* > /tmp/carry.tar && mkdir -p /tmp/carry && tar -xf /tmp/carry.tar -C /tmp/carry
#   python3 -m pip install -q --no-index --no-deps --target /tmp/site /tmp/carry/wheels/*.whl
#   PYTHONPATH=/tmp/site python3 -m benchmarks.accelerator --minutes 9 --data /tmp/carry/data \
#     --teacher /tmp/carry/data/checkpoints/cifar100_resnet56-*.pt --output DIR [--earlier /tmp/carry/earlier]
set -euo pipefail
data=$(cd "$1" && pwd)
mkdir -p "$2"
output=$(cd "$2" && pwd)
earlier=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The package's requirements that such machines lack, each with those of its own.
wheels=(tensorflow-datasets array_record ml-collections msgspec importlib_resources promise dm-tree immutabledict
  simple-parsing docstring-parser tensorflow-metadata googleapis-common-protos toml termcolor pytz)
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
mkdir -p "$work/wheels" "$work/data/cifar100" "$work/data/checkpoints"
for wheel in "${wheels[@]}"; do
  python3 -m pip download -q --no-deps --python-version "${PYTHON:-3.12}" --implementation cp --only-binary=:all: \
    "${platforms[@]}" -d "$work/wheels" "$wheel" 2>> "$work/log" \
    || python3 -m pip wheel -q --no-deps -w "$work/wheels" "$wheel" 2>> "$work/log" \
    || { cat "$work/log" >&2; exit 1; }  # a package without wheels, such as promise, is built here
done
cp -r "$data/cifar100/3.0.2" "$work/data/cifar100/"
cp "$data"/checkpoints/cifar100_resnet56-*.pt "$work/data/checkpoints/"
if [ -n "$earlier" ]; then mkdir "$work/earlier"; cp "$earlier"/visit.tar.* "$work/earlier/"; fi
rm -f "$output"/carry.*
tar -C "$work" -cf - . | split -b 52M -d - "$output/carry."
ls -l "$output"
