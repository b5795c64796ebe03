"""Accuracy, size and latency of int8 copies of trained networks, as a Markdown table.

    python -m benchmarks.int8 RUN... [--data-dir DIR] [--output NAME]

Each RUN is a run directory. Its network is exported to ONNX with its preprocessing, in float32 and in int8, as
`hsakd_jax.export --format=onnx --int8 --preprocess` does it, and both files are measured on the run's test images by
onnxruntime on CPU. Latency is the median time of a batch of one image. --data-dir is where the data of all runs is, if
not where they found it. Prints the table and writes it and JSON to benchmarks/results/NAME. Needs the extra 'onnx'.
"""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks.step import save
from hsakd_jax.core.errors import UserError
from hsakd_jax.interop.exporters import export
from hsakd_jax.interop.model_files import Measured
from hsakd_jax.runs import provenance
from hsakd_jax.runs.directory import RunDirectory

HEADER = (
    "| network | test images | top-1 %, float32 | int8 | difference | MB, float32 | int8 | times smaller "
    "| ms an image, float32 | int8 | times faster |"
)


def measure(run: str, data_dir: str | None) -> tuple[dict[str, Any], list[Measured]]:
    """The report of a run's export in int8, and the float32 and the int8 file as they were measured.

    Raises:
      UserError: as `export`, or no test images.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        report = export(run, path, "onnx", preprocess=True, int8=True, measure=True, data_dir=data_dir)
    if not (measured := report.pop("measured")):
        raise UserError(f"the test images of {run} are not there: set --data-dir")
    return report, measured


def row(arch: str, measured: list[Measured]) -> str:
    """A network's row of Markdown."""
    wide, narrow = measured
    ms = [1000 / one.images_per_s[1] for one in measured]
    cells = [
        arch,
        f"{wide.test_images:,}",
        *(f"{one.top1:.2f}" for one in measured),
        f"{narrow.top1 - wide.top1:+.2f}",
        *(f"{one.bytes / 1e6:.2f}" for one in measured),
        f"{wide.bytes / narrow.bytes:.2f}",
        *(f"{each:.2f}" for each in ms),
        f"{ms[0] / ms[1]:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--data-dir", help="where the data is now")
    parser.add_argument("--output", type=file_name, help="name of the files in benchmarks/results/")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore")  # of jax2onnx
    try:
        for run in args.runs:
            RunDirectory(run).config()
    except UserError as error:
        parser.error(str(error))
    environment, results = provenance.environment(), {}
    lines = [f"{environment['device']}, {len(os.sched_getaffinity(0))} cores; jax {jax.__version__}", "", HEADER]
    lines.append("|---" * (HEADER.count("|") - 1) + "|")
    for run in args.runs:
        busy = warn_if_busy()
        try:
            report, measured = measure(run, args.data_dir)
        except UserError as error:
            parser.error(str(error))
        if not results:
            lines[0] += f", {measured[0].runtime}"
            print("\n".join(lines), flush=True)
        lines.append(row(report["arch"], measured))
        print(lines[-1], flush=True)
        results[run] = {**report, "measured": [one.as_json() for one in measured], "other_work": busy}
    if args.output:
        save("int8", args.output, {"environment": environment, "runs": results}, lines)


if __name__ == "__main__":
    main()
