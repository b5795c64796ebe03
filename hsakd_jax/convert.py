"""Turns a published PyTorch checkpoint into a run directory.

    python -m hsakd_jax.convert CHECKPOINT --output=RUN [--arch=NAME] [--data=NAME] [--data_dir=DIR]
        [--image_size=PIXELS] [--mean=R,G,B --std=R,G,B] [--classes=FILE] [--part=NAME]

CHECKPOINT is a file of HSAKD, CRD, SSKD, mdistiller or torchvision (torch.save, in either form) or safetensors.
Network and number of classes are found from its tensors, unless --arch names the network. RUN then serves as
--config.teacher.workdir=RUN, as --config.frozen.init=RUN (a backbone whose branches are to be trained), and for
evaluate, export and predict. --classes names a file with one class a line, in the order of the network's outputs.
--part selects one of several sets of weights: a key of the file's dict, such as model_ema, or a prefix of its tensors,
such as teacher.
"""

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("output", "", "the run directory to make.", values)
    flags.DEFINE_string("arch", "", "the network; found from the tensors by default.", values)
    flags.DEFINE_string("data", "", "its dataset.", values)
    flags.DEFINE_string("data_dir", "", "folder of the data.", values)
    flags.DEFINE_integer("image_size", 0, "side of its images.", lower_bound=0, upper_bound=2**16, flag_values=values)
    flags.DEFINE_list("mean", [], "of the normalisation, 0 to 1.", values)
    flags.DEFINE_list("std", [], "standard deviation of the normalisation, 0 to 1.", values)
    flags.DEFINE_string("classes", "", "a file with the classes' names.", values)
    flags.DEFINE_string("part", "", "which weights of the file.", values)


def main(values: flags.FlagValues, words: list[str]) -> None:
    """Converts."""
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.interop import importing

    try:
        mean, std = ([float(number) for number in numbers] for numbers in (values.mean, values.std))
    except ValueError as error:
        raise UserError(f"--mean and --std are numbers with commas between them: {error}") from error
    importing.convert(
        words[0],
        values.output,
        Console(),
        arch=values.arch,
        data=values.data,
        data_dir=values.data_dir,
        image_size=values.image_size,
        mean=mean,
        std=std,
        classes=values.classes,
        part=values.part,
    )


COMMAND = Command(main, __doc__, define_flags, required=("output",), words="CHECKPOINT")

if __name__ == "__main__":
    start(COMMAND)
