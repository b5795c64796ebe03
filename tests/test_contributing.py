"""Follows the pages on adding a network, a method, a dataset: their code goes where it says, and works there."""

import importlib
import math
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_methods
import test_networks
from run_configs import run_results
from test_layers import ROOT, strangers

from hsakd_jax import create, models
from hsakd_jax.core.errors import UserError
from hsakd_jax.data import builders, datasets
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.distillation import methods
from hsakd_jax.distillation.methods import Sample
from hsakd_jax.experiments import pipeline, recipes
from hsakd_jax.experiments.resolve import recipes_of, resolve
from hsakd_jax.interop import torch_weights
from hsakd_jax.models.network import Outputs
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training.build import make_objective

TEXT = "".join((ROOT / f"docs/own_{what}.md").read_text() for what in ("network", "objective", "data"))
# A block begins with a comment: the file, and the dict in it, that the code goes to.
BLOCKS = {
    (path, table): code
    for path, table, code in re.findall(
        r"^```python\n# (\S+?)(?:, in (\w+))?\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE
    )
}


def test_every_block_says_where_it_goes():
    assert len(BLOCKS) == TEXT.count("```python")


@pytest.fixture
def new_file(tmp_path, monkeypatch):
    """Writes a new file of the document and imports it from its package."""
    made = []

    def make(package, name):
        code = BLOCKS[f"{package.__name__.replace('.', '/')}/{name}.py", ""]
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        made.append((package, name))
        assert not strangers(package.__name__.split(".")[1], code)
        return importlib.import_module(f"{package.__name__}.{name}")

    yield make
    for package, name in made:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


@pytest.fixture
def new_lines(monkeypatch):
    """Adds the document's lines to a dict of a module, which may have imported `names` first."""

    def add(module, table, **names):
        code = BLOCKS[str(Path(module.__file__).relative_to(ROOT)), table]
        lines = eval(f"{{{code}}}", {**vars(module), **names})
        for key, value in lines.items():
            monkeypatch.setitem(getattr(module, table), key, value)
        return lines

    return add


@pytest.fixture
def new_functions(monkeypatch):
    """Adds the document's functions to a module."""

    def add(module):
        scope = dict(vars(module))
        exec(BLOCKS[str(Path(module.__file__).relative_to(ROOT)), ""], scope)
        names = scope.keys() - vars(module).keys()
        for name in names:
            monkeypatch.setattr(module, name, scope[name], raising=False)
        return {name: scope[name] for name in names}

    return add


def test_network(new_file, new_lines):
    names = new_lines(models, "NETWORKS", plain=new_file(models, "plain"))
    counts = new_lines(test_networks, "BY_HAND")
    new_lines(test_networks, "INITIALISERS")
    assert counts.keys() == names.keys()
    # What a ResNet has more than a plain network are its two projections, convolution and BatchNorm.
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert counts["plain20"] == test_networks.ARCHITECTURES["resnet20"]["params"] - projections
    test_networks.test_hand_counts_give_the_golden_ones()
    test_networks.test_initialisers("plain8")
    for name in names:
        test_networks.test_networks_without_golden_figures(name)
        outputs, _ = jax.eval_shape(create(name, 10).init_with_output, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        assert [f.shape for f in outputs.features] == [(1, 32, 32, 16), (1, 16, 16, 32), (1, 8, 8, 64)]
    # PyTorch's checkpoints of the others are still told apart.
    resnet = create("resnet8", 10, branches=False)
    variables = initialise(resnet, (32, 32, 3), 0)
    tensors = torch_weights.to_state_dict("resnet8", resnet, variables)
    jax.tree.map(np.testing.assert_array_equal, torch_weights.load_torch(tensors), dict(variables))
    for refused in (
        lambda: torch_weights.to_state_dict("plain8", resnet, {}),
        lambda: torch_weights.load_torch(tensors, "plain8"),
    ):
        with pytest.raises(UserError, match="PyTorch's names of the layers of plain8 are not defined"):
            refused()


def test_method(new_file, new_functions, new_lines):
    hard = new_file(methods, "hard")
    (term,) = new_lines(methods, "TERMS", hard=hard.hard)
    ((name, recipe),) = new_lines(recipes, "RECIPES").items()
    (test,) = new_functions(test_methods).values()
    test()

    config = runpy.run_path(str(ROOT / "configs/digits.py"))["get_config"](name).to_dict()
    images = Dataset(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))
    assert recipes_of(config) == ["backbone", name]
    resolved = resolve(config, name, datasets.Splits(images, None, images, ("a", "b")))
    assert not resolved.network.branches
    assert resolved.teacher.workdir == "../backbone"
    weights = {name: term.weight for name, term in resolved.objective.terms.items() if term.weight}
    assert set(weights) == {"task", term}

    # Odds of 1 to 3 for the second class: the label says the first one, the teacher the second.
    student, teacher = (Outputs(jnp.log(jnp.array([odds])), (), ()) for odds in ([1.0, 3.0], [1.0, 9.0]))
    sample = Sample(jnp.array([0]), jnp.array([0]), jax.random.key(0))
    found = make_objective(resolved.objective).apply({}, student, jnp.array([0]), teacher, sample)
    loss = sum(weights[name] * float(value) for name, value in found.items())
    assert loss == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 3))

    assert recipe.title in pipeline.summary({0: {name: run_results(name, 50)}})


def test_dataset(new_file, new_lines, tmp_path):
    bars = new_file(builders, "bars")
    assert new_lines(builders, "BUILDERS", Bars=bars.Bars) == {"bars": bars.Bars}
    assert bars.Bars.name == "bars"
    splits = datasets.load("bars", str(tmp_path / "data"))
    assert splits.class_names == ("across", "down")
    found = []
    for odd, (images, labels, _) in enumerate((splits.train, splits.test)):
        assert images.shape == (8, 8, 8, 1)
        assert labels.tolist().count(0) == 4
        for image, label in zip(images[..., 0], labels, strict=True):
            line = image.min(1 - label)  # along the line every pixel is bright
            assert image.sum() == line.sum() * 8 == 255 * 8
            assert line.argmax() % 2 == odd
            found.append((label, line.argmax()))
    assert len(set(found)) == 16
