"""Turns a published PyTorch checkpoint into a run directory.

    python -m hsakd_jax.convert CHECKPOINT --output=RUN [--arch=NAME] [--data=NAME] [--data_dir=DIR]
        [--image_size=PIXELS] [--mean=R,G,B --std=R,G,B] [--classes=FILE]

CHECKPOINT is a file of HSAKD, CRD, SSKD, mdistiller or torchvision (torch.save, in either form) or safetensors.
Network and number of classes are found from its tensors, unless --arch names the network. RUN then serves as
--config.teacher.workdir=RUN, as --config.frozen.init=RUN (a backbone whose branches are to be trained), and for
evaluate, export and predict. --classes names a file with one class a line.
"""

from absl import flags

from hsakd_jax.cli import command

_OUTPUT = flags.DEFINE_string("output", "", "the run directory to make.")
_ARCH = flags.DEFINE_string("arch", "", "the network; found from the tensors by default.")
_DATA = flags.DEFINE_string("data", "", "its dataset.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where the data lies.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "side of its images.", lower_bound=0)
_MEAN = flags.DEFINE_list("mean", [], "of the normalisation, 0 to 1.")
_STD = flags.DEFINE_list("std", [], "likewise.")
_CLASSES = flags.DEFINE_string("classes", "", "a file with the classes' names.")


def main(words: list[str]) -> None:
    """Converts."""
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.interop import importing

    try:
        mean, std = ([float(number) for number in flag.value] for flag in (_MEAN, _STD))
    except ValueError as error:
        raise UserError(f"--mean and --std are numbers with commas between them: {error}") from error
    importing.convert(
        words[0],
        _OUTPUT.value,
        Console(),
        arch=_ARCH.value,
        data=_DATA.value,
        data_dir=_DATA_DIR.value,
        image_size=_IMAGE_SIZE.value,
        mean=mean,
        std=std,
        classes=_CLASSES.value,
    )


if __name__ == "__main__":
    command(main, __doc__, "output", words="CHECKPOINT")
