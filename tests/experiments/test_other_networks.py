"""Settings that belong to other networks than a run's own."""

import runpy

import numpy as np
import pytest
from conftest import ROOT
from run_configs import run_config

from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments.other_networks import settings_of_other_networks
from hsakd_jax.experiments.resolve import resolve, teacher_recipe
from hsakd_jax.runs.directory import RunDirectory

CLASSES = {"cifar100": [str(i) for i in range(100)], "imagenet": [f"n{1440764 + i:08}" for i in range(1000)]}


def lines(recipe, name="", file="cifar100", **keys):
    """The lines about a run of the recipe; `keys` are flags, with '__' for a dot."""
    config = runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"](recipe)
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    config.update_from_flattened_dict(keys)
    command = [f"--config=configs/{file}.py:{recipe}", *(f"--config.{key}={value}" for key, value in keys.items())]
    config, name = config.to_dict(), name or recipe.partition("/")[0]
    images = Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
    splits = Splits(images, None, images, tuple(CLASSES[file]))
    teacher = teacher_recipe(config, name)
    if teacher:
        given = config["teacher"]["workdir"]
        teacher = RunDirectory(given).config() if given else resolve(config, teacher, splits)
    return settings_of_other_networks(config, resolve(config, name, splits), teacher or None, command)


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory):
    """A run of ResNet-56, as far as its config."""
    path = tmp_path_factory.mktemp("runs") / "resnet56"
    directory = RunDirectory(path)
    directory.acquire(run_config("backbone/resnet56", "cifar100", CLASSES["cifar100"], (32, 32, 3)))
    return str(path)


def test_networks_behind_the_recipe_have_their_settings(resnet56):
    named = ("dkd/resnet56/resnet20", "crd/wrn_40_2/ShuffleV1", "kd_25/resnet56/resnet20")
    for recipe in ("dkd", "kd_ls", "reviewkd", "wkd_l", "mlld", "kd_25", "sskd", *named):
        assert not lines(recipe), recipe
    assert not lines("hsakd/resnet56/resnet20", "dkd", runs=("baseline", "dkd"))
    assert not lines("dkd/resnet56/resnet20", teacher__workdir=resnet56)
    assert not lines("dkd", file="imagenet")
    assert not lines("dkd/resnet50_imagenet/mobilenetv1_100", file="imagenet", data__name="image_tree")
    assert not lines("baseline/ShuffleV1", student__arch="ShuffleV2")
    assert not lines("mutual/ShuffleV1", peers=("ShuffleV1", "ShuffleV2"))


def test_a_dataset_of_a_flag_has_the_settings_of_the_files_dataset():
    (line,) = lines("dkd/resnet56/resnet20", data__name="cifar10")
    assert line == (
        "objective.dkd has the settings of another dataset (dkd.beta 2.0), and none are published for resnet56 and "
        "resnet20 on cifar10: select your own on held-out images, --config.data.validation=0.1"
    )
    found = lines("dkd/resnet34_imagenet/resnet18_imagenet", data__name="imagenet2012")
    assert "objective.dkd.dkd.beta is 8.0, and 0.5 is published for resnet34_imagenet and resnet18" in found[0]
    remedy = (
        "in the config file of imagenet2012, --config=FILE:dkd/resnet34_imagenet/resnet18_imagenet, or set --config"
    )
    assert all(remedy in line for line in found)
    assert not lines("dkd/resnet56/resnet20", data__name="cifar100")
    assert not lines("dkd/resnet56/resnet20", data__name="cifar10", objective__dkd__dkd__beta=8.0)
    assert not lines("kd/resnet56/resnet20", data__name="cifar10")


def test_networks_of_flags_do_not(resnet56):
    (line,) = lines("dkd", teacher__arch="resnet56", student__arch="resnet20")
    assert line == (
        "objective.dkd.dkd.beta is 6.0, and 2.0 is published for resnet56 and resnet20: name both behind the recipe, "
        "--config=FILE:dkd/resnet56/resnet20, or set --config.objective.dkd.dkd.beta"
    )
    assert lines("dkd", teacher__workdir=resnet56, student__arch="resnet20") == [line]
    (line,) = lines("dkd/resnet20", teacher__workdir=resnet56)
    assert "objective.dkd.dkd.beta is 8.0, and 2.0 is published" in line
    chosen = {"teacher__arch": "resnet56", "student__arch": "resnet20", "objective__dkd__dkd__beta": 4.0}
    assert not lines("dkd", **chosen)
    (line,) = lines("dkd", teacher__arch="resnet56", student__arch="wrn_16_1")
    assert line.startswith(
        "objective.dkd has the settings of other networks (dkd.beta 6.0), and none are published for resnet56 and wrn"
    )


@pytest.mark.parametrize("data", ["imagenet2012", "image_tree"])
def test_a_tree_of_imagenet_has_its_settings(data):
    pair = {"teacher__arch": "resnet50_imagenet", "student__arch": "mobilenetv1_100"}
    assert any("dkd.beta is 0.5, and 2.0 is" in line for line in lines("dkd", file="imagenet", data__name=data, **pair))


def test_a_config_behind_a_space():
    command = ["--config", "configs/cifar100.py:baseline/ShuffleV1", "--config.student.arch=ShuffleV2"]
    config = runpy.run_path(str(ROOT / "configs/cifar100.py"))["get_config"]("baseline/ShuffleV1").to_dict()
    run = run_config("baseline/ShuffleV1", "cifar100", CLASSES["cifar100"], (32, 32, 3), student__arch="ShuffleV2")
    assert not settings_of_other_networks(config, run, None, command)


@pytest.mark.parametrize(
    ("recipe", "keys", "expected"),
    [
        ("baseline", {"student__arch": "ShuffleV1"}, "student.lr is 0.05, and the rate of ShuffleV1 is a fifth of"),
        ("baseline/ShuffleV1", {"student__arch": "resnet20"}, "student.lr is 0.01, and the rate of resnet20 is five"),
        ("mutual", {"peers": ("ShuffleV1", "ShuffleV2")}, "student.lr is 0.05, and the rate of ShuffleV1 and Shuff"),
        ("mutual", {"peers": ("wrn_16_2", "ShuffleV2")}, "student.lr is 0.05, and the rate of ShuffleV2 is a fifth"),
        ("teacher", {"teacher__arch": "mobilenetV2"}, "teacher.lr is 0.05, and the rate of mobilenetV2 is a fifth of"),
        ("baseline", {"student__arch": "ShuffleV1", "student__lr": 0.01}, None),
        ("baseline", {"student__arch": "resnet20"}, None),
        ("teacher_frozen", {"teacher__arch": "mobilenetV2"}, None),  # branches have one rate
    ],
)
def test_the_learning_rate_of_networks_that_have_another(recipe, keys, expected):
    found = lines(recipe, **keys)
    assert [line for line in found if expected and line.startswith(expected)] == found
    assert bool(found) == bool(expected)
