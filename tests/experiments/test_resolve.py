"""From a command's config to those of its runs."""

import runpy

import pytest
from conftest import ROOT
from run_configs import run_config

from hsakd_jax.experiments.resolve import settings_of_other_networks
from hsakd_jax.runs.directory import RunDirectory

CLASSES = [str(i) for i in range(100)]


def lines(recipe, name, *flags, file="cifar100", **keys):
    """The lines about a run of the recipe; `keys` are set as `flags` would."""
    config = runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"](recipe)
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    config.update_from_flattened_dict(keys)
    command = [*flags, *(f"--config.{key}={value}" for key, value in keys.items())]
    return settings_of_other_networks(config.to_dict(), name, command)


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory):
    """A run of ResNet-56, as far as its config."""
    path = tmp_path_factory.mktemp("runs") / "resnet56"
    directory = RunDirectory(path)
    directory.acquire(run_config("backbone/resnet56", "cifar100", CLASSES, (32, 32, 3)))
    return str(path)


def test_networks_behind_the_recipe_have_their_settings(resnet56):
    named = ("dkd/resnet56/resnet20", "crd/wrn_40_2/ShuffleV1")
    for recipe in ("dkd", "kd_ls", "reviewkd", "wkd_l", "mlld", "student", *named):
        assert not lines(recipe, recipe.partition("/")[0]), recipe
    assert not lines("hsakd/resnet56/resnet20", "dkd", runs=("baseline", "dkd"))
    assert not lines("dkd/resnet56/resnet20", "dkd", teacher__workdir=resnet56)


def test_networks_of_flags_do_not(resnet56):
    (line,) = lines("dkd", "dkd", teacher__arch="resnet56", student__arch="resnet20")
    assert line == (
        "objective.dkd.dkd.beta is 6.0, and 2.0 is published for resnet56 and resnet20: name both behind the recipe, "
        "--config=FILE:dkd/resnet56/resnet20, or set --config.objective.dkd.dkd.beta"
    )
    assert lines("dkd", "dkd", teacher__workdir=resnet56, student__arch="resnet20") == [line]
    (line,) = lines("dkd/resnet20", "dkd", teacher__workdir=resnet56)
    assert "objective.dkd.dkd.beta is 8.0, and 2.0 is published" in line
    chosen = {"teacher__arch": "resnet56", "student__arch": "resnet20", "objective__dkd__dkd__beta": 4.0}
    assert not lines("dkd", "dkd", **chosen)
    # No value is published for this pair, so none is missing.
    assert not lines("dkd", "dkd", teacher__arch="resnet56", student__arch="wrn_16_1")


def test_the_learning_rate_of_networks_that_do_not_bear_it():
    (line,) = lines("baseline", "baseline", student__arch="ShuffleV1")
    assert line.startswith("student.lr is 0.05, and networks like ShuffleV1 learn at a fifth of the others' rate")
    assert not lines("baseline", "baseline", student__arch="ShuffleV1", student__lr=0.01)
    assert not lines("baseline/ShuffleV1", "baseline")
    assert not lines("baseline", "baseline", student__arch="resnet20")
