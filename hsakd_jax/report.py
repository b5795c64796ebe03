"""Writes an HTML page about runs: their settings, results, training curves and misclassified images.

    python -m hsakd_jax.report RUN... --output=report.html [--png=DIR] [--data_dir=DIR] [--classes=FILE]

RUN is the directory of one run, or a folder that contains several, such as a pipeline's. The page is one file without
links to others. Runs that differ in their seed only are shown as their mean, with a band of one standard deviation. As
`results` does, the page compares students with the baseline and with KD.

The command predicts the classes of the test images with the last checkpoints. --data_dir sets the folder of the data,
if it has moved. The page lists the parts that need a missing run or missing data. --classes sets a file with the
names of the classes, one per line. --png writes each figure as a PNG too. The command needs the extra 'report':
pip install -e '.[report]' in the checkout.
"""

import os
from pathlib import Path

from absl import flags

from hsakd_jax.cli import Command, start
from hsakd_jax.core.console import show
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import install, report_is_installed
from hsakd_jax.core.files import check_folder, expand, write_files


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("output", "", "the page, FILE.html.", values)
    flags.DEFINE_string("png", None, "a folder for the figures as PNG.", values)
    flags.DEFINE_string("classes", None, "a file with the names of the classes.", values)
    flags.DEFINE_string("data_dir", None, "the folder of the data, if it has moved.", values)


def main(values: flags.FlagValues, folders: list[str]) -> None:
    """Writes the report."""
    from hsakd_jax.analysis import run_index

    output, pngs = expand(values.output), expand(values.png) if values.png else None
    _check(output, pngs)
    runs, unfinished = run_index.find(folders)
    if not runs and unfinished:
        raise UserError(f"{', '.join(map(str, unfinished))} is not finished: let it go on")
    if not runs:
        raise run_index.no_run_error(folders)
    if not report_is_installed():
        raise UserError(f"a report needs matplotlib and jinja2: {install('report')}")
    from hsakd_jax.analysis import page

    content, figures = page.make(runs, unfinished, values.data_dir, values.classes)
    drawn = {pngs / f"{name}.png": draw() for name, draw in figures.items()} if pngs else {}
    try:
        if pngs:
            pngs.mkdir(parents=True, exist_ok=True)
        write_files({output: content.encode(), **drawn})
    except OSError as error:
        raise UserError(f"can't write {error.filename or output}: {error.strerror}") from error
    amount = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(figures)} figures"
    show(f"{output}: {amount}" + (f", also in {pngs}" if pngs else ""))


def _check(output: Path, pngs: Path | None) -> None:
    """Refuses files that can't be written, before the long work."""
    if output.suffix not in (".html", ".htm") or os.path.isdir(output):
        raise UserError(f"--output={output}: name a file that ends in .html")
    check_folder(output)
    if pngs and os.path.exists(pngs) and not os.path.isdir(pngs):
        raise UserError(f"--png={pngs} is a file: name a folder")
    for folder in filter(None, (output.parent, pngs)):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"can't write to {there}: choose another folder")


COMMAND = Command(main, __doc__, define_flags, required=("output",), words="RUN...")


if __name__ == "__main__":
    start(COMMAND)
