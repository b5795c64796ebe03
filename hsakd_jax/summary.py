"""Shows what a network is made of.

    python -m hsakd_jax.summary NAME_OR_RUN [--num_classes=100] [--image_size=32] [--channels=3] [--batch=64]
        [--dtype=float32|bfloat16]

NAME is a network's, shown with its branches; RUN a run directory, whose network, classes and images are taken.
Parts, shapes, parameters and multiply-adds of one image, and the memory of a train step at --batch images (each
in its four rotations where there are branches).
"""

from pathlib import Path

from absl import flags

from hsakd_jax.cli import command

_CLASSES = flags.DEFINE_integer("num_classes", 100, "classes.")
_SIZE = flags.DEFINE_integer("image_size", 0, "side of the images; 224 of ImageNet's networks, 32 of others.")
_CHANNELS = flags.DEFINE_integer("channels", 3, "of the images.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "images a step.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "compute dtype.")


def main(words: list[str]) -> None:
    """Shows a network."""
    from hsakd_jax import facts
    from hsakd_jax.nets import create
    from hsakd_jax.rundir import RunDirectory

    (word,) = words
    if Path(word).expanduser().is_dir():
        network = RunDirectory(word).config()["network"]
        name, shape = network["arch"], tuple(network["image_shape"])
        built = create(name, network["num_classes"], network["branches"], network["dtype"])
    else:
        built = create(word, _CLASSES.value, True, _DTYPE.value)
        side = _SIZE.value or (224 if word.endswith("_imagenet") else 32)
        name, shape = word, (side, side, _CHANNELS.value)
    print(facts.describe(name, built, shape, _BATCH.value))


if __name__ == "__main__":
    command(main, __doc__, words="NAME_OR_RUN")
