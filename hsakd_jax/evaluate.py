"""Measures a trained network on every test image exactly once, on all devices.

    python -m hsakd_jax.evaluate --workdir=RUN [--checkpoint=last|best] [--data_dir=DIR] [--json]
    python -m hsakd_jax.evaluate --workdir=RUN --model=FILE [--data_dir=DIR] [--json]

RUN is the directory of one run, or of a pipeline: the command then measures its runs one after the other. It names a
run that it can't measure, goes on with the others, and exits with status 2. The command prints
top-1 and, for more than five classes, top-5 over upright images. For each branch it prints two accuracies over all
four rotations. For joint, the argmax of its 4N logits is the class and the rotation. For class, the argmax of its
logits summed over rotations is the class.

With --model, an exported FILE runs on the test images of RUN, in its own runtime. That is onnxruntime for .onnx, JAX
for .stablehlo, and this package for weights (.safetensors, .pth, or a folder for the Hub). Prints size, accuracy and
speed.

--data_dir sets the folder of the data, if it has moved; --json prints one JSON object for machines.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    from hsakd_jax.runs.directory import RunDirectory, runs_inside

    if values.data_dir and not expand(values.data_dir).is_dir():
        raise UserError(f"the data should be in {values.data_dir}, which is no folder: set --data_dir=DIR")
    root = expand(values.workdir)
    runs = [root] if (root / "config.json").exists() else runs_inside(root) or [root]
    if len(runs) > 1:  # the teacher first, as in the table of the training
        runs.sort(key=_order)
        if begun := [run for run in runs if RunDirectory(run).has_checkpoint()]:
            for run in sorted({*runs} - {*begun}):
                note(f"{run}: no checkpoint yet")
            runs = begun
    measured = _measure(runs, values)
    if values.json and measured:
        show(json.dumps(measured[str(root)] if runs == [root] else measured, indent=2))
    if failed := [str(run) for run in runs if str(run) not in measured]:
        raise UserError(f"{', '.join(failed)}: not measured, for the reasons above: fix these, then run it again")


def _order(run: Path) -> tuple[int, str]:
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.experiments.recipes import RECIPES
    from hsakd_jax.runs.directory import RunDirectory

    try:
        recipe = RunDirectory(run).config().recipe
    except UserError:  # its measurement has the reason
        recipe = ""
    return list(RECIPES).index(recipe) if recipe in RECIPES else -1, run.name


def _measure(runs: Sequence[Path], values: flags.FlagValues) -> dict[str, dict[str, Any]]:
    """The accuracies of the runs that can be measured, by path; shows each, and the reason where one can't be.

    Raises:
      UserError: the only run can't be measured.
    """
    from hsakd_jax.core import failures
    from hsakd_jax.core.console import note, show
    from hsakd_jax.evaluation import accuracy

    measured: dict[str, dict[str, Any]] = {}
    for run in runs:
        try:
            found = accuracy.evaluate_run(run, values.checkpoint, values.data_dir)
        except Exception as error:  # a programming error keeps its traceback
            line = failures.explain(error)
            if line is None or len(runs) == 1:
                raise
            note(line if str(run) in line else f"{run}: {line}")
            continue
        if not values.json:
            show("\n" * bool(measured) + accuracy.report(str(run), found))
        measured[str(run)] = found
    return measured


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
