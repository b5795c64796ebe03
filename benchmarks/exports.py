"""How far exported programs are from our networks, for every network, as a Markdown table.

    python -m benchmarks.exports [NAME...]

StableHLO, and ONNX by onnxruntime where the extra 'onnx' is installed; random weights, without branches, on CPU.
"""

import argparse
import tempfile
import warnings
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


def make_config(name: str, side: int) -> Config:
    """The config of a network of 100 classes that takes images as they are."""
    return Config(
        classes=(),
        network=Network(
            arch=name,
            dtype="float32",
            branches=False,
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


def main() -> None:
    """Prints a row for each network."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", type=network_name, default=NETWORKS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of jax2onnx
    formats = ["stablehlo"] + ["onnx"] * bool(find_spec("jax2onnx"))
    print(f"jax {jax.__version__}; greatest difference of logits, relative to the greatest logit; MB of the file\n")
    print("| network | " + " | ".join(f"{f} difference | MB" for f in formats) + " |")
    print("|---" * (1 + 2 * len(formats)) + "|", flush=True)
    for name in args.names:
        side = architecture(name).image_size
        network = create(name, 100, branches=False)
        exported = Export(name, network, random_variables(network, (side, side, 3)), make_config(name, side), False)
        cells = []
        with tempfile.TemporaryDirectory() as folder, jax.default_device("cpu"):
            for file_format in formats:
                path = Path(folder, name)
                difference, greatest = compare(exported, FORMATS[file_format][0](exported, path))
                cells += [f"{difference / greatest:.1e}", f"{path.stat().st_size / 1e6:.1f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
