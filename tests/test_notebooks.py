"""The notebooks of colab/: clean in git, and run from top to bottom on small input."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from test_builders import cifar_archive, md5

from hsakd_jax import create
from hsakd_jax.data import datasets
from hsakd_jax.data.builders import BUILDERS
from hsakd_jax.interop import torch_weights

NOTEBOOKS = {path.stem: path for path in (ROOT / "colab").glob("*.ipynb")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What stock Colab has of what the package needs: its pip shall leave these as they are.
COLAB = {
    "jax": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.4",
    "tensorflow-datasets": "4.9.10",
    "array-record": "0.8.3",
    "chex": "0.1.90",
}
SMALL = {"TEACHER": "resnet8_half", "STUDENT": "resnet8_quarter", "EPOCHS": 2, "BATCH": 4}


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def sources(notebook, kind="code"):
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == kind}


def test_there_are_notebooks():
    assert set(NOTEBOOKS) == {"hsakd_cifar100_tpu", "evaluate_checkpoint", "your_own_images"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_in_git_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)  # given by a person, so that they stay
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert [cell.id for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]
    text = json.dumps(json.loads(NOTEBOOKS[name].read_text()), indent=1, ensure_ascii=False) + "\n"
    assert NOTEBOOKS[name].read_text() == text  # as editors write it, so that differences are small


def test_notebooks_share_their_beginning():
    shared = [{id: sources(read(name))[id] for id in ("install", "set-up")} for name in NOTEBOOKS]
    assert shared[0] == shared[1] == shared[2]


@pytest.mark.parametrize("path", [*NOTEBOOKS.values(), ROOT / "README.md"], ids=lambda path: path.name)
def test_the_address_is_that_of_pyproject(path):
    """The owner changes it in one go."""
    repository = PROJECT["urls"]["Repository"]
    owner = repository.removeprefix("https://github.com/")
    text = path.read_text()
    assert set(re.findall(r"github\.com/([\w.-]+/hsakd_jax)\b", text)) <= {owner}
    assert set(re.findall(r"colab\.research\.google\.com/github/(\S+?)/blob/main/colab/\w+\.ipynb", text)) <= {owner}
    for name in re.findall(r"/blob/main/colab/(\w+)\.ipynb", text):
        assert name in NOTEBOOKS
    if path.suffix == ".ipynb":
        assert f'SOURCE = "git+{repository}"\n' in sources(nbformat.read(path, as_version=4))["parameters"]
        assert f"](https://colab.research.google.com/github/{owner}/blob/main/colab/{path.name})" in text


def test_pip_leaves_colab_as_it_is():
    needed = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
    assert set(COLAB) <= set(needed)
    for name, version in COLAB.items():
        assert needed[name].specifier.contains(version), f"pip would change {name}"
    assert not {"tensorflow", "tensorflow-cpu", "clu"} & set(needed)
    for requirement in needed.values():
        assert not {"<", "<=", "==", "~=", "==="} & {part.operator for part in requirement.specifier}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What pip builds the package from; it writes there."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("hsakd_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_what_pip_installs_has_the_configs(checkout, tmp_path):
    """Colab has no checkout."""
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, checkout], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        modules = {name for name in content.namelist() if name.endswith(".py")}
    configs = {f"hsakd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert configs
    assert modules == configs | {f"{path.relative_to(ROOT)}" for path in (ROOT / "hsakd_jax").rglob("*.py")}


@pytest.fixture
def execute(checkout, tmp_path):
    """Runs a notebook with other words and numbers in its folder; gives what each cell printed, and its pictures."""
    env = {
        **{key: value for key, value in os.environ.items() if key != "COLAB_RELEASE_TAG"},
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),  # kernels and matplotlib write there
        "JUPYTER_PLATFORM_DIRS": "1",
    }

    def run(name, **words):
        # pip resolves from what is installed, installs nothing, and says what it would.
        words["SOURCE"] = f"--dry-run --no-index --no-build-isolation --report=pip.json {checkout}"
        notebook = read(name)
        at = [cell.id for cell in notebook.cells].index("parameters") + 1
        assert set(words) <= set(re.findall(r"\w+(?=(?:, \w+)* = )", notebook.cells[at - 1].source))
        lines = "\n".join(f"{key} = {value!r}" for key, value in words.items())
        notebook.cells.insert(at, nbformat.v4.new_code_cell(lines, id="injected-parameters"))
        try:
            client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
            client.execute(env=env)
        finally:
            nbformat.write(notebook, tmp_path / f"{name}.ipynb")  # to look at
        printed, pictures = {}, {}
        for cell in notebook.cells:
            outputs = cell.get("outputs", [])
            printed[cell.id] = "".join(o.text for o in outputs if o.output_type == "stream")
            pictures[cell.id] = sum("image/png" in o.get("data", ()) for o in outputs)
            assert not re.search(r"Warning|Traceback|^error:", printed[cell.id], re.MULTILINE), printed[cell.id]
        report = json.loads((tmp_path / "pip.json").read_text())
        assert [canonicalize_name(p["metadata"]["name"]) for p in report["install"]] == ["hsakd-jax"]
        return printed, pictures

    return run


def prepare_cifar100(folder, monkeypatch):
    """Twelve images of noise a split, in the published layout."""
    archive, _ = cifar_archive("cifar100", folder)
    monkeypatch.setattr(BUILDERS["cifar100"], "MD5", md5(archive))
    datasets.load("cifar100", str(folder))


@pytest.mark.slow
def test_hsakd_cifar100_tpu(execute, monkeypatch, tmp_path):
    prepare_cifar100(tmp_path / "kept here/data", monkeypatch)
    words = {**SMALL, "FOLDER": "kept here", "FRACTION": 1.0}
    printed, pictures = execute("hsakd_cifar100_tpu", **words)
    assert printed["set-up"].startswith(f"everything is kept in {tmp_path}/kept here\n")
    assert re.search(r"student: epoch 2/2, .* s per epoch without evaluations, 0 s left", printed["train"])
    assert "HSAKD*" in printed["train"]
    assert printed["evaluate"].count("12 test images") == 3
    assert pictures["report"] == 4
    assert pictures["restore"] == 1
    assert float(printed["run-exported"].split()[-1]) < 1e-5
    # After a disconnect.
    again, _ = execute("hsakd_cifar100_tpu", **words)
    assert again["train"].count(": done, ") == 3
    assert "epoch 2/2" not in again["train"]
    assert again["evaluate"] == printed["evaluate"]


@pytest.mark.slow
def test_hsakd_cifar100_tpu_from_a_checkpoint(execute, monkeypatch, tmp_path):
    prepare_cifar100(tmp_path / "hsakd_jax/data", monkeypatch)
    network = create(SMALL["TEACHER"], 100, branches=False)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = tmp_path / "a teacher.safetensors"
    safetensors.numpy.save_file(torch_weights.to_state_dict(SMALL["TEACHER"], network, variables), path)
    printed, _ = execute("hsakd_cifar100_tpu", **SMALL, FRACTION=1.0, CHECKPOINT=str(path))
    assert "student_frozen: done, test top-1" in printed["train"]
    assert printed["evaluate"].count("12 test images") == 3
    assert float(printed["run-exported"].split()[-1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "pth.tar"])
def test_evaluate_checkpoint(form, execute, monkeypatch, tmp_path):
    prepare_cifar100(tmp_path / "hsakd_jax/data", monkeypatch)
    network = create("resnet20", 100)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    tensors = torch_weights.to_state_dict("resnet20", network, variables)
    path = tmp_path / f"a teacher.{form}"
    if form == "safetensors":
        safetensors.numpy.save_file(tensors, path)
    else:
        torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
        state = {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in tensors.items()}
        torch.save({"net": state, "acc": 1.0, "epoch": 240}, path)
    printed, pictures = execute("evaluate_checkpoint", CHECKPOINT=str(path), IMAGES=10)
    assert "resnet20, with branches, 100 classes" in printed["convert"]
    top1 = float(re.search(r"12 test images\s+top-1 ([\d.]+) %", printed["evaluate"])[1])
    assert "branch 3" in printed["evaluate"]
    assert re.search(r"[\d.]+% of 10 images are right", printed["predict"])
    assert pictures["misclassified"] == 1
    assert 0 <= top1 <= 100


@pytest.mark.slow
def test_your_own_images(execute, monkeypatch, tmp_path):
    """A .zip with one folder in it, which holds the classes: bright images and dark ones."""
    random = np.random.default_rng(0)
    for name, mean in (("bright", 200), ("dark", 50)):
        (tmp_path / "mine/both" / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.normal(mean, 20, (40, 30, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine/both" / name / f"no {i}.png")
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "mine")
    network = create("resnet8", 100, branches=False)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    tensors = torch_weights.to_state_dict("resnet8", network, variables)
    safetensors.numpy.save_file(tensors, tmp_path / "pretrained.safetensors")
    small = {"STUDENT": "resnet8_quarter", "EPOCHS": 6, "BATCH": 4, "IMAGE_SIZE": 16}
    small |= {"PRETRAINED": "pretrained.safetensors"}
    printed, pictures = execute("your_own_images", IMAGES="images.zip", **small)
    assert "40 images in" in printed["images"]
    assert "bright: 20\n  dark: 20\n" in printed["images"]
    assert printed["evaluate"].count("8 test images") == 4
    assert "top-1 100.00 %" in printed["evaluate"]
    assert pictures["report"] >= 2
    assert pictures["predict"] == 1
    answers = re.findall(r"^(bright|dark)/no \d+\.png: (\w+) ", printed["run-exported"], re.MULTILINE)
    assert len(answers) == 12
    assert sum(folder == answer for folder, answer in answers) > 9
