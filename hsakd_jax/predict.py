"""Predicts the classes of images.

    python -m hsakd_jax.predict --workdir=RUN IMAGE... [--top=5] [--checkpoint=last|best] [--format=table|csv|json]

IMAGE is a file (JPEG, PNG, WebP, ...) or a folder, which is searched in depth. Each image is cropped and scaled as
the test images of the run are. Files that can't be read, and images whose outputs are not finite, are named and
skipped, and the exit status is 2 then.
"""

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", "", "the run.", values)
    flags.DEFINE_integer("top", 5, "classes per image.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint.", values)
    flags.DEFINE_enum("format", "table", ["table", "csv", "json"], "how predictions are printed.", values)


def main(values: flags.FlagValues, words: list[str]) -> None:
    """Predicts."""
    from hsakd_jax.core.console import note, show
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.evaluation import classify
    from hsakd_jax.runs.directory import RunDirectory

    RunDirectory(values.workdir).config()  # refuses a folder that is no run before many images are listed
    paths = classify.find(words)
    predictions, skipped = classify.predict(values.workdir, paths, values.top, values.checkpoint)
    if predictions or values.format != "table":
        show(classify.SHOWN_AS[values.format](predictions))
    for line in skipped:
        note(f"skipped: {line}")
    if skipped:
        raise UserError(f"skipped {len(skipped)} of {len(paths)} files, those named above")


COMMAND = Command(main, __doc__, define_flags, required=("workdir",), words="IMAGE...")

if __name__ == "__main__":
    start(COMMAND)
