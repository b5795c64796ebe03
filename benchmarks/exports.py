"""How far exported programs are from our networks, for every network with and without branches, as a Markdown table.

    python -m benchmarks.exports [NAME...] [--output FILE]

StableHLO, and ONNX by onnxruntime where the extra 'onnx' is installed; random weights, on CPU. Networks for ImageNet
take images of 64x64, which have the same programs as larger ones and take less time. A file is not written where its
weights are above protobuf's limit of 2 GB.

--output writes the table to FILE after each row. Rows of the same versions that FILE has are kept, so that a run that
was interrupted goes on: remove FILE to compute all of them.
"""

import argparse
import re
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

from benchmarks import Parser
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.image_files import DECODING
from hsakd_jax.interop.exporters import FORMATS, Export, compare
from hsakd_jax.models import NETWORKS, architecture, create
from hsakd_jax.runs.config import Config, Data, Network

SMALL = 64  # pixels of the images of ImageNet's networks
LIMIT = 2 * 10**9  # bytes of a file


def random_variables(network, shape):
    """Weights that keep the signal's scale, and statistics as of a trained network."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *shape), np.float32))

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.1
        return (spread * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_config(name: str, side: int, branches: bool = False) -> Config:
    """The config of a network of 100 classes that takes images as they are."""
    return Config(
        classes=(),
        network=Network(
            arch=name,
            dtype="float32",
            branches=branches,
            peers=(),
            projector=None,
            num_classes=100,
            image_shape=(side, side, 3),
        ),
        data=Data(
            name=None,
            dir=None,
            image_size=None,
            resize=None,
            crop="pad",
            pad=0,
            flip=False,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            fraction=1.0,
            validation=0.0,
            interpolation="bilinear",
            decoding=DECODING,
            max_pixels=None,
        ),
        eval_batch=1,
    )


def network_name(text: str) -> str:
    """The type of an argument that names a network."""
    try:
        create(text, 2)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def cells(name: str, side: int, branches: bool, formats: list[str]) -> list[str]:
    """The difference of each format and the size of its file."""
    network = create(name, 100, branches)
    variables = random_variables(network, (side, side, 3))
    if sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) >= LIMIT:
        return ["above 2 GB", "-"] * len(formats)
    exported = Export(name, network, variables, make_config(name, side, branches), False)
    found = []
    with tempfile.TemporaryDirectory() as folder, jax.default_device("cpu"):
        for file_format in formats:
            path = Path(folder, name)
            difference, greatest = compare(exported, FORMATS[file_format][0](exported, path))
            found += [f"{difference / greatest:.1e}", f"{path.stat().st_size / 1e6:.1f}"]
            jax.clear_caches()  # compiled programs that contain the weights: five times their size
    return found


def header(formats: list[str]) -> list[str]:
    """The lines above the rows."""
    used = ["jax", *["jax2onnx", "onnxruntime"] * ("onnx" in formats)]
    return [
        "# Exports against JAX",
        "",
        f"`python -m benchmarks.exports` on CPU, {', '.join(f'{package} {version(package)}' for package in used)}.",
        "",
        "Greatest difference of logits, relative to the greatest logit, over batches of 1 and 3 images; file in MB.",
        "With branches, their logits are compared too.",
        "",
        "| network | branches | pixels | " + " | ".join(f"{f} difference | MB" for f in formats) + " |",
        "|---" * (3 + 2 * len(formats)) + "|",
    ]


def read_rows(path: Path | None, above: list[str]) -> dict[tuple[str, str], str]:
    """Rows that a file has below the same header, by network and 'yes' or 'no' for branches."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    if lines[: len(above)] != above:
        return {}
    rows = [re.match(r"\| (\w+) \| (yes|no) \|", line) for line in lines[len(above) :]]
    return {(row[1], row[2]): row.string for row in rows if row}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the rows of each network."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", type=network_name, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, help="a Markdown file")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")  # of jax2onnx
    formats = ["stablehlo"] + ["onnx"] * bool(find_spec("jax2onnx"))
    above = header(formats)
    rows = read_rows(args.output, above)
    print("\n".join(above), flush=True)
    for name in args.names:
        made = architecture(name)
        side = SMALL if made.for_imagenet else made.image_size
        for branches in (False, True):
            key = name, "yes" if branches else "no"
            if key not in rows:
                found = [*key, str(side), *cells(name, side, branches, formats)]
                rows[key] = "| " + " | ".join(found) + " |"
            print(rows[key], flush=True)
            if args.output:
                ordered = sorted(rows, key=lambda key: (list(NETWORKS).index(key[0]), key[1]))
                args.output.write_text("\n".join([*above, *(rows[key] for key in ordered), ""]))


if __name__ == "__main__":
    main()
