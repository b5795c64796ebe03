"""What a training step costs each device as devices are added: work, memory, what is sent, what must be read.

    python -m benchmarks.scale [--pair wrn_40_2:wrn_16_2] [--batch 64] [--devices 8] [--compile] [--groups 1]

Counts come from shapes; --compile checks what is sent against the step compiled for that many virtual devices.
"""

import os
import re
from math import prod

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import Parser
from hsakd_jax.core import runtime

WIDTHS = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}


def size(shapes: str) -> int:
    """Bytes of arrays as XLA writes them: 'f32[2,3]{1,0}', or several."""
    shapes = re.sub(r"/\*.*?\*/", "", shapes)  # which number the parts of long tuples
    found = re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
    return sum(WIDTHS[kind] * prod(map(int, filter(None, sides.split(",")))) for kind, sides in found)


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Collectives of a compiled program's text: name -> (how many, bytes of their results)."""
    found: dict[str, tuple[int, int]] = {}
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    program = re.sub(r"/\*.*?\*/", "", program)  # which number the parts of long tuples
    for shapes, name in re.findall(rf"= ([^=]*?) ({names})(?:-start)?\(", program):
        count, total = found.get(name, (0, 0))
        found[name] = count + 1, total + size(shapes)
    return found


def minimum(network, image_shape) -> dict[str, int]:
    """Bytes that a student's step must send at least: gradients once, and the sums of global BatchNorm's forward pass.

    Its backward sums are the gradients of bias and scale, so they are counted already.
    """
    import jax
    import jax.numpy as jnp

    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    gradients = sum(x.size * 4 for x in jax.tree.leaves(shapes["params"]))
    return {"gradients": gradients, "statistics": sum(x.size * 4 for x in jax.tree.leaves(shapes["batch_stats"]))}


def costs(pair: str, batch: int, devices: int) -> dict[str, float]:
    """Of one step, for each device."""
    from benchmarks import step
    from hsakd_jax.models import create, profile

    classes, side = (1000, 224) if pair.endswith("_imagenet") else (100, 32)
    student = create(pair.split(":")[1], classes)
    least = minimum(student, (side, side, 3))
    share = batch / devices
    return {
        "GFLOP": step.flops(pair) * share / 1e9,
        "activations, MiB": profile.activation_bytes(student, (side, side, 3), 4) * share / 2**20,
        "parameters, gradients, momentum, MiB": 3 * least["gradients"] / 2**20,
        "gradients sent, MiB": least["gradients"] / 2**20,
        "statistics sent, MiB": least["statistics"] / 2**20,
        "images read, MiB": share * side * side * 3 / 2**20,
    }


def compiled(pair: str, batch: int, groups: int = 1) -> dict[str, tuple[int, int]]:
    """Collectives of the step compiled for all devices, with BatchNorm in that many groups."""
    from benchmarks import step

    made, state, device_mesh, dataset = step.our_step(pair, batch, "float32", batch_norm_groups=groups)
    rows = device_mesh.shard(step.batch_of(dataset))
    return collectives(made.lower(*state, *rows).compile().as_text())


def main() -> None:
    """Prints."""
    parser = Parser(__doc__)
    parser.add_argument("--pair", default="wrn_40_2:wrn_16_2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--groups", type=int, default=1, help="of BatchNorm")
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    runtime.configure_runtime()
    print(f"{args.pair}, batch {args.batch} x 4 on {args.devices} devices, each:")
    for name, value in costs(args.pair, args.batch, args.devices).items():
        print(f"  {name}: {value:,.2f}")
    if args.compile:
        for name, (count, size) in compiled(args.pair, args.batch, args.groups).items():
            print(f"  compiled: {count} {name}, {size / 2**20:,.2f} MiB")


if __name__ == "__main__":
    main()
