"""The walls between the rooms: what each module may import, the standard library aside."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room is a module or, with *, all of a folder that have no line of their own. The words are other rooms and packages.
# What no line names, nobody may import: TensorFlow and clu are on no machine that the package must run on.
ROOMS = {
    # knows formulas
    "rotations": "jax",
    "losses": "jax optax nets.kernels",
    "objectives": "jax losses nets.network rotations",
    "rivals": "flax jax losses nets.kernels nets.network nets.parts objectives optax rotations",
    "metrics": "jax nets.network rotations",
    "optim": "errors jax nets.parts optax",
    "step": "flax jax metrics nets.parts optax optim",
    # knows layers
    "nets.kernels": "jax numpy",
    "nets.parts": "flax jax nets.kernels",
    "nets.network": "flax jax nets.kernels nets.parts rotations",
    "nets": "errors jax nets.*",
    "nets.*": "flax jax nets.*",
    # knows files
    "errors": "",
    "files": "errors",
    "rundir": "errors files",
    "checkpoint": "devices errors files flax jax numpy orbax",
    "variables": "checkpoint errors flax jax nets nets.network rundir step",
    # knows other people's files
    "nets.torch_names": "nets.*",
    "state_dicts": "errors jax numpy safetensors torch",
    "weights": "errors flax jax nets nets.network nets.torch_names numpy state_dicts",
    "conversion": "checkpoint errors facts files nets progress recipes rundir state_dicts weights",
    "exporting": "augment errors facts files jax jax2onnx numpy onnxruntime rundir safetensors torch variables weights",
    # knows images
    "augment": "jax",
    "prediction": "augment datasets.pictures errors jax numpy progress rundir variables",
    "sampling": "errors numpy",
    "photos": "PIL augment errors numpy sampling",
    "records": "PIL errors numpy photos progress sampling tensorflow_datasets",
    "data": "datasets datasets.* errors numpy photos records sampling tensorflow_datasets",
    "datasets": "datasets.*",
    "datasets.prepare": "absl errors tensorflow_datasets",
    "datasets.download": "errors progress",
    "datasets.*": "PIL datasets.download datasets.pictures errors progress numpy sklearn tensorflow_datasets",
    # knows a run
    "devices": "errors jax numpy xla",
    "facts": "flax jax nets.network",
    "dispatch": "devices jax numpy photos sampling",
    "accuracies": "",
    "evaluation": "augment data devices errors jax metrics nets.network photos progress rotations rundir sampling "
    "variables",
    "teachers": "errors jax nets.folded rundir variables",
    "assemble": "augment devices errors flax jax nets.parts numpy objectives optax optim photos recipes rivals "
    "rotations rundir sampling step teachers variables",
    "tracking": "errors rundir tensorboardX trackio wandb",
    "train": "accuracies assemble checkpoint data devices dispatch errors evaluation facts flax jax "
    "progress recipes rundir sampling signals step tracking variables",
    # knows a command
    "recipes": "ml_collections",
    "configs.*": "recipes",
    "checks": "devices errors nets recipes tracking",
    "pipeline": "accuracies assemble checks data devices errors files progress recipes rundir sampling train variables",
    "progress": "",
    "signals": "",
    "xla": "",
    "cli": "absl errors xla",
    "__main__": "",
    "main": "absl cli devices ml_collections pipeline progress",
    "evaluate": "absl cli evaluation recipes rundir",
    "convert": "absl cli conversion errors progress",
    "export": "absl cli exporting",
    "predict": "absl cli errors prediction",
    "summary": "absl cli errors facts nets progress rotations rundir",
    "report": "absl cli collected errors files matplotlib page",
    "page": "accuracies charts collected errors files groups markup mistakes opinions rundir",
    "charts": "accuracies collected figures groups markup",
    "markup": "PIL figures matplotlib",
    "mistakes": "figures markup numpy opinions",
    "groups": "collected recipes rundir tables",
    "results": "absl cli collected errors formats tables",
    # knows what people look at
    "figures": "matplotlib numpy",
    "opinions": "augment data datasets errors evaluation jax numpy photos progress rundir variables",
    # knows the paper
    "published": "",
    "collected": "accuracies errors files published recipes rundir",
    "tables": "collected published recipes",
    "formats": "progress published recipes tables",
    "": "nets nets.network variables weights",
}


def name(path):
    """'nets.resnet' of hsakd_jax/nets/resnet.py, '' of hsakd_jax/__init__.py, 'configs.digits' of configs/digits.py."""
    parts = path.with_suffix("").parts
    return ".".join(parts[parts[0] == "hsakd_jax" : len(parts) - (parts[-1] == "__init__")])


FILES = {
    name(path.relative_to(ROOT)): path for folder in ("hsakd_jax", "configs") for path in (ROOT / folder).rglob("*.py")
}


def imports(source):
    """Every room and package that the source imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A relative import is none of the house's: it stays a name that no line allows.
            found = [f"{'.' * node.level or node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            package, *rest = full.split(".")
            if package != "hsakd_jax":
                yield package if package and rest[-1:] != ["*"] else full
            elif ".".join(rest) in FILES or rest[-1] == "*":
                yield ".".join(rest)
            else:  # a name inside a room
                yield ".".join(rest[:-1])


def strangers(room, source):
    """What the source of a room imports and may not."""
    line = room if room in ROOMS else next((line for line in ROOMS if fnmatch(room, line)), None)
    assert line is not None, f"{room} has no line in ROOMS: give it one that says what it may import"
    allowed = [*ROOMS[line].split(), *sys.stdlib_module_names]
    return {found for found in imports(source) if found.endswith("*") or not any(fnmatch(found, a) for a in allowed)}


@pytest.mark.parametrize("room", FILES)
def test_a_room_knows_what_it_may(room):
    found = strangers(room, FILES[room].read_text())
    assert not found, (
        f"{FILES[room]} imports {', '.join(sorted(found))}: move the line to a room that may, or, "
        "if the wall is wrong, change ROOMS in this test and say why in the commit"
    )


@pytest.mark.parametrize(
    ("room", "source", "stranger"),
    [
        ("rotations", "from hsakd_jax.nets.network import Outputs", "nets.network"),
        ("losses", "def f():\n    from hsakd_jax import rotations", "rotations"),
        ("objectives", "import hsakd_jax.train as t", "train"),
        ("nets.resnet", "from hsakd_jax.losses import kl", "losses"),
        ("nets.new", "from hsakd_jax import create", ""),
        ("checkpoint", "from hsakd_jax import objectives, files", "objectives"),
        ("train", "from hsakd_jax.nets import resnet", "nets.resnet"),
        ("rundir", "import orbax.checkpoint as ocp", "orbax"),
        ("metrics", "import tensorflow_datasets as tfds", "tensorflow_datasets"),
        ("datasets.new", "import tensorflow as tf", "tensorflow"),
        ("step", "from clu import metric_writers", "clu"),
        ("recipes", "import jax.numpy as jnp", "jax"),
        ("configs.new", "import numpy as np", "numpy"),
        ("augment", "from . import data", "..data"),
        ("nets", "from hsakd_jax.nets.resnet import *", "nets.resnet.*"),
        ("augment", "from jax.numpy import *", "jax.numpy.*"),
    ],
)
def test_a_wall_holds(room, source, stranger):
    assert strangers(room, source) == {stranger}


def test_a_new_room_needs_a_line():
    with pytest.raises(AssertionError, match="has no line in ROOMS"):
        strangers("helpers", "")


def test_no_file_is_called_utils():
    """A room for what has no room grows without end."""
    assert not [path for path in FILES.values() if {"util", "utils"} & set(path.with_suffix("").parts)]
