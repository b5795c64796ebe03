"""The step's program for a GPU or TPU that need not be here: its operations, what they read and write, its memory.

    python -m benchmarks.programs [--pair wrn_40_2:wrn_16_2 ...] [--target h200|v5e:2x2|...] [--chips 1] [--batch 64]
        [--dtype bfloat16] [--output NAME]

XLA compiles for devices that it has a description of: the GPUs named below, with JAX's CUDA packages installed, and
TPU slices, with libtpu. What it can't tell is time. Bytes are those of each operation's operands and results, which the
memory's rate bounds where no cache holds any: more than is moved, such as the whole set of images for the rows taken
out of it. Small operations are bound by their start, some microseconds each. What is counted is one step, of CIFAR one
of the many that a call makes.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator

# The accelerators' plug-ins compile; none of their devices is to be looked for.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import Parser, file_name
from benchmarks import step as bench
from benchmarks.scale import collectives, size
from hsakd_jax.core.sharding import Devices
from hsakd_jax.training import multi_step, teachers

# Numbers of NVIDIA's data sheets, in the form of XLA's GpuTargetConfigProto.
GPU = """
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cores}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  fpus_per_core: {units}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block}
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
HOPPER = {"major": 9, "minor": 0, "cores": 132, "cache": 50 << 20, "clock": 1.98, "units": 128, "shared": 228 << 10}
HOPPER |= {"block": 227 << 10}
AMPERE = {"major": 8, "minor": 0, "cores": 108, "cache": 40 << 20, "clock": 1.41, "units": 64, "shared": 164 << 10}
AMPERE |= {"block": 163 << 10}
GPUS = {
    "h200": {**HOPPER, "name": "NVIDIA H200", "bandwidth": 4_800 * 10**9, "memory": 141 * 10**9},
    "h100": {**HOPPER, "name": "NVIDIA H100", "bandwidth": 3_350 * 10**9, "memory": 80 * 10**9},
    "a100": {**AMPERE, "name": "NVIDIA A100", "bandwidth": 2_039 * 10**9, "memory": 80 * 10**9},
}
# Bytes a second of a TPU's memory, by Google's pages.
TPUS = {"v4": 1_228 * 10**9, "v5e": 819 * 10**9, "v5p": 2_765 * 10**9, "v6e": 1_640 * 10**9}
# Of what XLA writes in a program, that which computes nothing.
FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "constant", "while"}
# An array in a TPU's own memory.
OWN = re.compile(r"\w+\[[\d,]*\]\{\S*?S\(1\)\S*?\}")
SMALL, MOST = 2**20, 12


def target_devices(target: str, chips: int) -> list:
    """Descriptions of devices that one can compile for."""
    if target in GPUS:
        found = topologies.get_topology_desc(
            "", "cuda", topology=f"1x1x{chips}", target_config=GPU.format(**GPUS[target])
        )
    else:
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        found = topologies.get_topology_desc(target, "tpu")
    return list(found.devices[:chips])


def compiled(pair: str, batch: int, dtype: str, devices: Devices):
    """The program as `train` makes it on accelerators: of many steps where the images fit there, or of one."""
    many = pair in bench.CIFAR_PAIRS
    network, teacher, init, step, dataset = bench.compile_ours(pair, batch, dtype, devices)
    shape = dataset.images.shape[1:]
    image, key = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.random.key(0)
    state = jax.eval_shape(init, jax.eval_shape(network.init, key, image))
    taught = jax.eval_shape(teachers.inference_form(teacher).init, key, image)
    rows = bench.CIFAR_IMAGES if many else batch
    images = jax.ShapeDtypeStruct((rows, *shape), jnp.uint8), jax.ShapeDtypeStruct((rows,), jnp.int32)
    given = devices.abstract((state, taught), devices.replicated)
    if not many:
        return step.lower(*given, *devices.abstract((*images, images[1]), devices.batch_sharded)).compile()
    everything = devices.abstract((*images, jax.ShapeDtypeStruct((), jnp.int32)), devices.replicated)
    chosen = devices.abstract(jax.ShapeDtypeStruct((batch, multi_step.CHUNK), jnp.int32), devices.batch_sharded)
    return multi_step.compile_many(step, devices).lower(*given, *everything, chosen).compile()


def operations(program: str) -> list[tuple[str, int]]:
    """(kind, bytes read and written) of each operation of one step, in a compiled program's text."""
    bodies = [f"\n%{name} (" for name in re.findall(r"body=%([\w.-]+)", program)]
    return max((list(_operations(program, start)) for start in [*bodies, "\nENTRY"]), key=len)


def _operations(program: str, start: str) -> Iterator[tuple[str, int]]:
    begin, sizes = program.index(start) + 1, {}
    for line in program[begin : program.index("\n}", begin)].splitlines():
        if not (found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", line)):
            continue
        name, shapes, kind, operands, rest = found.groups()
        sizes[name] = size(OWN.sub("", shapes))
        if kind in FREE or kind.endswith("-done"):
            continue
        if called := re.search(r'custom_call_target="([^"]*)"', rest):
            kind = called.group(1)
        elif kind == "fusion":
            kind = re.sub(r"[._]\d+.*", "", name)
        if kind in ("copy-start", "slice-start"):  # between a TPU's own memory and the other one; more is in its shapes
            yield kind, min(size(shape) for shape in re.findall(r"\w+\[\d[\d,]*\]", shapes))
            continue
        yield kind, sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))


def main() -> None:
    """Prints."""
    parser = Parser(__doc__)
    parser.add_argument("--pair", action="append", choices=bench.PAIRS, help="may be given several times")
    parser.add_argument("--target", default="h200", help=f"{', '.join(GPUS)}, or a TPU slice such as v5e:2x2")
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--output", type=file_name, help="name of the file in benchmarks/results/")
    args = parser.parse_args()
    on = "gpu" if args.target in GPUS else "tpu"
    if on == "tpu" and args.target.partition(":")[0] not in TPUS:
        parser.error(f"--target={args.target} is not known: take {', '.join(GPUS)}, or {', '.join(TPUS)} as in v5e:2x2")
    try:
        devices = Devices(target_devices(args.target, args.chips))
    except (RuntimeError, ValueError, ImportError, AssertionError) as error:
        package = bench.missing_plugin(on)
        why = f"it needs pip install {package}" if package else str(error).partition("\n")[0] or "it is refused"
        parser.error(f"--target={args.target}: {why}")
    if len(devices) < args.chips or args.batch % args.chips:
        parser.error(
            f"--chips={args.chips}: {args.target} has {len(devices)}, over which --batch={args.batch} is split"
        )
    rate = GPUS[args.target]["bandwidth"] if on == "gpu" else TPUS[args.target.partition(":")[0]]
    jax.default_backend, jax.device_count = lambda: on, lambda: args.chips  # which layers ask for their form
    lines = [
        f"One step, each of {args.chips} x {args.target}, batch {args.batch} x 4 on all, {args.dtype}, "
        f"jax {jax.__version__}",
        "",
        "| pair | GFLOP | operations | of them under 1 MiB | GiB read and written | at the memory's rate, ms | "
        "memory, GiB | sent, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = {}
    print("\n".join(lines), flush=True)
    for pair in args.pair or ["wrn_40_2:wrn_16_2"]:
        program = compiled(pair, args.batch, args.dtype, devices)
        text, memory = program.as_text(), program.memory_analysis()
        found = operations(text)
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        sent = [f"{n} {name} {total / 2**20:.2f}" for name, (n, total) in collectives(text).items()]
        small, moved = sum(b < SMALL for _, b in found), sum(b for _, b in found)
        lines.append(
            f"| {pair} | {bench.flops(pair) * args.batch / args.chips / 1e9:,.0f} | {len(found):,} | {small:,} | "
            f"{moved / 2**30:.2f} | {1e3 * moved / rate:.1f} | {needed / 2**30:.2f} | "
            f"{', '.join(sent) or '-'} |"
        )
        print(lines[-1], flush=True)
        kinds = Counter()
        for kind, moved in found:
            kinds[kind] += moved
        counts = Counter(kind for kind, _ in found)
        results[pair] = {kind: {"count": counts[kind], "bytes": moved} for kind, moved in kinds.most_common()}
    of = ["", "| pair | the operations that move most | count | GiB |", "|---|---|---|---|"]
    for pair, kinds in results.items():
        for kind, known in [*kinds.items()][:MOST]:
            of.append(f"| {pair} | {kind} | {known['count']} | {known['bytes'] / 2**30:.2f} |")
    print("\n".join(of))
    lines += of
    if args.output:
        bench.save("programs", args.output, {"jax": jax.__version__, **vars(args), "pairs": results}, lines)


if __name__ == "__main__":
    main()
