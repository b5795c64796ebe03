"""Shows the parts of a network.

    python -m hsakd_jax.summary NAME_OR_RUN [--num_classes=N] [--image_size=PIXELS] [--channels=3] [--batch=64]
        [--dtype=float32|bfloat16] [--time]

NAME is a network, shown with its branches. RUN is a run directory: the command uses its network, classes and images.
Shows parts, shapes, parameters and multiply-adds of one image. Shows the memory of a train step at --batch images, each
in its four rotations where there are branches, and whether this device has it. With --time, it compiles the step and
shows the measured time and memory.
"""

import os
from typing import Any

from absl import flags

from hsakd_jax.cli import Command, start

MIB = 2**20


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer(
        "num_classes", None, "classes; by default as published.", lower_bound=2, upper_bound=2**24, flag_values=values
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "side of the images; by default as published.",
        lower_bound=1,
        upper_bound=2**16,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "channels", None, "of the images, by default 3.", lower_bound=1, upper_bound=2**10, flag_values=values
    )
    flags.DEFINE_integer("batch", 64, "images per step.", lower_bound=1, upper_bound=2**16, flag_values=values)
    flags.DEFINE_boolean("time", False, "whether to compile the train step and measure it.", flag_values=values)
    flags.DEFINE_string("dtype", None, "compute dtype, by default float32.", values)


def main(values: flags.FlagValues, words: list[str]) -> None:
    """Shows a network."""
    from hsakd_jax.core.console import note, show
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.core.files import expand
    from hsakd_jax.models import NETWORKS, architecture, create
    from hsakd_jax.runs.directory import RunDirectory
    from hsakd_jax.runs.restore import build_network, peer_config

    (word,) = words
    if word not in NETWORKS and ("/" in word or os.path.isdir(expand(word))):
        for flag in ("num_classes", "image_size", "channels", "dtype"):
            if values[flag].value is not None:
                raise UserError(f"--{flag} is for the name of a network, a run has its own: leave it out")
        network = RunDirectory(word).config().network
        name, shape = network.arch, network.image_shape
        built = build_network(peer_config(network, word))
    else:
        published = architecture(word)
        classes = values.num_classes or (1000 if published.for_imagenet else 100)
        built = create(word, classes, True, values.dtype or "float32")
        side = values.image_size or published.image_size
        name, shape = word, (side, side, values.channels or 3)
    show(describe(name, built, shape, values.batch))
    if values.time:
        note("compiling and timing the step")
        show(measured(built, shape, values.batch))


def describe(name: str, network: Any, image_shape: tuple[int, ...], batch: int) -> str:
    """A table of a network's parts and the memory of its train step at `batch` images.

    Raises:
      UserError: the images are too small for the network.
    """
    from hsakd_jax.core.console import table
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.core.sharding import available_bytes
    from hsakd_jax.models import profile
    from hsakd_jax.models.rotations import ROTATIONS

    try:
        found = profile.modules(network, image_shape)
    except ValueError as error:
        raise UserError(str(error)) from error

    def row(title, some):
        return [title, "", f"{sum(p.params for p in some):,}", f"{sum(p.multiply_adds for p in some):,}"]

    rows = [[part, " x ".join(map(str, p.shape)), f"{p.params:,}", f"{p.multiply_adds:,}"] for part, p in found.items()]
    rows.append(row("deployed", [p for part, p in found.items() if not part.startswith("branch")]))
    if network.branches:
        rows.append(row("with branches", found.values()))
    height, width, channels = image_shape
    images = batch * (ROTATIONS if network.branches else 1)
    each = "in 4 rotations" if network.branches else "upright"
    weights = 3 * 4 * sum(p.params for p in found.values())
    kept, available = profile.activation_bytes(network, image_shape, images), available_bytes()
    verdict = "fits in" if weights + kept < available else "measure it with --time, it may not fit in"
    return (
        f"{name}, {network.num_classes} classes, images of {height}x{width}x{channels}\n\n"
        f"{table(['part', 'output', 'parameters', 'multiply-adds'], rows)}\n\n"
        f"train step, {batch} images {each}: {weights / MIB:,.0f} MiB of parameters, gradients and momentum, "
        f"at most {kept / MIB:,.0f} MiB of activations; {verdict} the {available / MIB:,.0f} MiB of this device"
    )


def measured(network: Any, image_shape: tuple[int, ...], batch: int) -> str:
    """A line with the measured time and memory of a train step at `batch` images on this device."""
    from hsakd_jax.training.estimate import measure_network

    cost = measure_network(network, image_shape, batch)
    verdict = "fits in" if cost.fits else "set a smaller --batch, it is more than"
    return (
        f"measured: {cost.seconds:.3g} s per step, {batch / cost.seconds:,.0f} images/s, {cost.bytes / MIB:,.0f} MiB; "
        f"compiled in {cost.compile_seconds:.0f} s; {verdict} the {cost.available / MIB:,.0f} MiB of this device"
    )


COMMAND = Command(main, __doc__, define_flags, words="NAME_OR_RUN")

if __name__ == "__main__":
    start(COMMAND)
