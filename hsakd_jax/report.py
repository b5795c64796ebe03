"""Makes a page of runs: what was trained, how it went, what it is wrong about.

    python -m hsakd_jax.report RUN... --output=report.html [--png=DIR] [--data_dir=DIR] [--classes=FILE]

RUN is the directory of one run or a folder of several, such as a pipeline's, which is searched in depth. The page is
one file that needs nothing else. Runs that differ in their seed alone are shown as their mean with a band of one
standard deviation.

The last checkpoints answer the test images once more; --data_dir says where these lie now. What can't be shown, since
a run or the data is not there, is left out and named. --classes names a file with what the classes are called, one a
line, where the data calls them n01443537. --png writes each figure as a PNG too. Figures need matplotlib:
pip install 'hsakd_jax[report]'.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("output", "", "the page, FILE.html.", values)
    flags.DEFINE_string("png", "", "a folder for the figures as PNG.", values)
    flags.DEFINE_string("classes", "", "a file with the classes' names.", values)
    flags.DEFINE_string("data_dir", None, "where the data lies, if not where the run found it.", values)


def main(values: flags.FlagValues, folders: list[str]) -> None:
    """Writes the report."""
    from hsakd_jax.analysis import page, run_index
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.core.files import check_folder, write_files

    output, pngs = Path(values.output).expanduser(), Path(values.png).expanduser() if values.png else None
    if output.suffix not in (".html", ".htm") or os.path.isdir(output):
        raise UserError(f"--output={output}: name a file that ends in .html")
    check_folder(output)
    if pngs and os.path.exists(pngs) and not os.path.isdir(pngs):
        raise UserError(f"--png={pngs} is a file: name a folder")
    for folder in filter(None, (output.parent, pngs)):  # now, and not after long work
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"can't write to {there}: choose another folder")
    runs, unfinished = run_index.find(folders)
    if not runs:
        waiting = f"{', '.join(map(str, unfinished))} is not finished: let it go on"
        raise UserError(
            waiting if unfinished else f"{', '.join(folders)}: no run there (it has a config.json): check the path"
        )
    if not find_spec("matplotlib"):
        raise UserError("a report needs matplotlib: pip install 'hsakd_jax[report]'")
    content, pictures = page.make(runs, unfinished, values.data_dir, values.classes)
    drawn = {pngs / f"{name}.png": draw() for name, draw in pictures.items()} if pngs else {}
    try:
        if pngs:
            pngs.mkdir(parents=True, exist_ok=True)
        write_files({output: content.encode(), **drawn})
    except OSError as error:
        raise UserError(f"can't write {error.filename or output}: {error.strerror}") from error
    amount = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(pictures)} figures"
    print(f"{output}: {amount}" + (f", also in {pngs}" if pngs else ""))


COMMAND = Command(main, __doc__, define_flags, required=("output",), words="RUN...")

if __name__ == "__main__":
    start(COMMAND)
