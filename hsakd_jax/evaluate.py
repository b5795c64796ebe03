"""Measures a trained network on every test image exactly once, on all devices.

    python -m hsakd_jax.evaluate --workdir=RUN [--checkpoint=last|best] [--data_dir=DIR] [--json]
    python -m hsakd_jax.evaluate --workdir=RUN --model=FILE [--data_dir=DIR] [--json]

RUN is the directory of one run, or of a pipeline: the command then measures its runs one after the other. A run that
can't be measured is named, the others are measured, and the exit status is 2. It prints
top-1 and, for more than five classes, top-5 over upright images. For each branch it prints two accuracies over all
four rotations. For joint, the argmax of its 4N logits is the class and the rotation. For class, the argmax of its
logits summed over rotations is the class.

With --model, an exported FILE runs on the test images of RUN, in its own runtime. That is onnxruntime for .onnx, JAX
for .stablehlo, and this package for weights (.safetensors, .pth, or a folder for the Hub). Prints size, accuracy and
speed.

--data_dir sets the folder of the data, if it has moved; --json prints one JSON object for machines.
"""

import json

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", "", "the run.", values)
    flags.DEFINE_string("model", "", "an exported file to measure instead of a checkpoint.", values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint.", values)
    flags.DEFINE_string("data_dir", None, "folder of the data, if not where the run found it.", values)
    flags.DEFINE_bool("json", False, "print JSON.", values)


def main(values: flags.FlagValues) -> None:
    """Evaluates."""
    if values.model:
        _evaluate_file(values)
        return
    from hsakd_jax.core.console import note, show
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.core.files import expand
    from hsakd_jax.evaluation import accuracy
    from hsakd_jax.experiments.recipes import RECIPES
    from hsakd_jax.runs.directory import RunDirectory, runs_inside

    root = expand(values.workdir)
    runs = [root] if (root / "config.json").exists() else runs_inside(root) or [root]
    if len(runs) > 1:  # the teacher first, as in the table of the training
        order = {recipe: i for i, recipe in enumerate(RECIPES)}
        runs.sort(key=lambda run: (order.get(RunDirectory(run).config().recipe, -1), run.name))
        if begun := [run for run in runs if RunDirectory(run).has_checkpoint()]:
            for run in sorted({*runs} - {*begun}):
                note(f"{run}: no checkpoint yet")
            runs = begun
    measured, failed = {}, []
    for run in runs:
        try:
            measured[str(run)] = accuracy.evaluate_run(run, values.checkpoint, values.data_dir)
        except UserError as error:
            if len(runs) == 1:
                raise
            note(f"{run}: {error}")
            failed.append(str(run))
            continue
        if not values.json:
            show("\n" * (len(measured) > 1) + accuracy.report(str(run), measured[str(run)]))
    if values.json:
        show(json.dumps(measured[str(root)] if runs == [root] else measured, indent=2))
    if failed:
        raise UserError(f"{', '.join(failed)}: not measured, see above")


def _evaluate_file(values: flags.FlagValues) -> None:
    from hsakd_jax.core.console import show
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.interop import model_files
    from hsakd_jax.runs.directory import RunDirectory

    if values["checkpoint"].present:
        raise UserError("--model measures a file, not a checkpoint: leave out --checkpoint")
    measured = model_files.evaluate_file(values.model, values.workdir, values.data_dir)
    classes = RunDirectory(values.workdir).config().network.num_classes
    show(json.dumps(measured.as_json(), indent=2) if values.json else model_files.as_table([measured], classes))


COMMAND = Command(main, __doc__, define_flags, required=("workdir",), compiles=True)

if __name__ == "__main__":
    start(COMMAND)
