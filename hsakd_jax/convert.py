"""Turns a published PyTorch checkpoint into a run directory.

    python -m hsakd_jax.convert CHECKPOINT --output=RUN [--arch=NAME] [--data=NAME] [--data_dir=DIR]
        [--image_size=PIXELS] [--resize=PIXELS] [--interpolation=bilinear|bicubic] [--mean=R,G,B --std=R,G,B]
        [--classes=FILE] [--part=NAME]
    python -m hsakd_jax.convert --timm=NAME --output=RUN ...
    python -m hsakd_jax.convert --torchvision=NAME --output=RUN ...

CHECKPOINT is a file of HSAKD, CRD, SSKD, mdistiller, torchvision or timm (torch.save, in either form), or safetensors.
The command finds the network and the number of classes from the tensors; --arch sets the network. Safetensors that
export wrote contain the settings of their run; of other files, it prints those that it assumes. RUN then serves as
--config.teacher.workdir=RUN, as --config.frozen.init=RUN (a backbone whose branches are to be trained), and for
evaluate, export and predict. --classes sets a file with one class per line, in the order of the network's outputs.
--part selects one of several sets of weights: a key of the file's dict (model_ema), or a prefix of its tensors
(teacher).

--timm and --torchvision take pretrained weights from the package, which downloads them, with their preprocessing and
classes: --timm=resnet50.a1_in1k, --torchvision=resnet50 (its default weights) or
--torchvision=ResNet50_Weights.IMAGENET1K_V1. Of a file for ImageNet, the preprocessing is that of the published
weights of its network.
"""

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("output", "", "the run directory to make.", values)
    flags.DEFINE_string("timm", "", "pretrained weights of timm.", values)
    flags.DEFINE_string("torchvision", "", "pretrained weights of torchvision.", values)
    flags.DEFINE_string("arch", "", "the network; found from the tensors by default.", values)
    flags.DEFINE_string("data", "", "its dataset.", values)
    flags.DEFINE_string("data_dir", "", "folder of the data.", values)
    for name, what in (("image_size", "side of its images."), ("resize", "their shorter side before the crop.")):
        flags.DEFINE_integer(name, 0, what, lower_bound=0, upper_bound=2**16, flag_values=values)
    flags.DEFINE_enum("interpolation", None, ["bilinear", "bicubic"], "how images are scaled.", values)
    flags.DEFINE_list("mean", [], "of the normalisation, 0 to 1.", values)
    flags.DEFINE_list("std", [], "standard deviation of the normalisation, 0 to 1.", values)
    flags.DEFINE_string("classes", "", "a file with the classes' names.", values)
    flags.DEFINE_string("part", "", "which weights of the file.", values)


def main(values: flags.FlagValues, words: list[str]) -> None:
    """Converts."""
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.interop import importing
    from hsakd_jax.interop.packages import PACKAGES

    try:
        mean, std = ([float(number) for number in numbers] for numbers in (values.mean, values.std))
    except ValueError as error:
        raise UserError(f"--mean and --std are numbers with commas between them: {error}") from error
    if any(number > 1 for number in (*mean, *std)):
        raise UserError("--mean and --std are of images from 0 to 1: divide those of images from 0 to 255 by 255")
    named = {package: str(values[package].value) for package in PACKAGES if values[package].value}
    if not named and not words:
        raise UserError("CHECKPOINT is missing: set a file, --timm=NAME or --torchvision=NAME")
    if len(named) + len(words) > 1:
        raise UserError("the weights come from one place: set CHECKPOINT, --timm or --torchvision")
    if named and values.part:
        raise UserError("--part selects weights of a file: leave it out")
    (source,) = words or named.values()
    importing.convert(
        source,
        values.output,
        Console(),
        package=next(iter(named), ""),
        arch=values.arch,
        data=values.data,
        data_dir=values.data_dir,
        image_size=values.image_size,
        resize=values.resize,
        interpolation=values.interpolation or "",
        mean=mean,
        std=std,
        classes=values.classes,
        part=values.part,
    )


COMMAND = Command(main, __doc__, define_flags, required=("output",), words="[CHECKPOINT]")

if __name__ == "__main__":
    start(COMMAND)
