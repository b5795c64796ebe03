"""What leaves the package: files that others load, and that compute what our network does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest
import reference
import safetensors.numpy
from conftest import ROOT
from run_configs import run_config
from small_families import SMALL

from benchmarks.exports import random_variables
from hsakd_jax import create, restore
from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.augment import normalise
from hsakd_jax.interop import torch_files, torch_weights
from hsakd_jax.interop.exporters import FORMATS, TOLERANCE, Export, compare, export
from hsakd_jax.interop.importing import convert
from hsakd_jax.models.network import Network
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise, initialiser

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
torch_networks = pytest.importorskip("benchmarks.torch_networks", reason="benchmarks lie in the checkout only")
ARCHITECTURES = reference.read("architectures.json")["architectures"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pytorch_computes_the_golden_outputs_from_our_state_dict(name):
    """Loaded with strict=True into a PyTorch network of the reference's names."""
    arch, network = reference.create(name)
    tensors = torch_weights.to_state_dict(
        name.removesuffix("_aux"), network, reference.variables(arch, dtype=np.float32)
    )
    theirs = torch_networks.create(name.removesuffix("_aux"), arch["num_classes"], network.branches)
    theirs.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, strict=True)
    images, _ = reference.inputs("input", 2, arch["resolution"], arch["num_classes"])
    with torch.no_grad():
        logits, aux_logits = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
    golden = np.load(reference.GOLDEN / "outputs.npz")
    found = {"logits": logits, **{f"aux_{l}": q for l, q in enumerate(aux_logits, 1)}}
    assert {f"{name}/{key}" for key in found} == {key for key in golden.files if key.startswith(f"{name}/")}
    for key, value in found.items():
        expected = golden[f"{name}/{key}"]
        assert abs(value.numpy() - expected).max() <= 1e-5 * abs(expected).max(), key


def golden(name):
    """A network with its golden weights."""
    arch, network = reference.create(name)
    side = arch["resolution"]
    config = run_config(shape=(side, side, 3), data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    return Export(name.removesuffix("_aux"), network, reference.variables(arch, dtype=np.float32), config, False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of golden weights: ShuffleNetV2 with its branches, on images of 32x32."""
    arch = reference.architecture("ShuffleV2_aux")
    folder = tmp_path_factory.mktemp("run")
    tensors = {k: torch.from_numpy(v) for k, v in reference.state_dict(arch, dtype=np.float32).items()}
    torch.save({"net": tensors}, folder / "x.pth.tar")
    convert(folder / "x.pth.tar", folder / "run", Console())
    return folder / "run"


@pytest.mark.parametrize("file_format", ["torch", "safetensors"])
def test_weights_come_back_bit_for_bit(file_format, run, tmp_path):
    report = export(run, tmp_path / "x", file_format, branches=True)
    assert report["greatest_difference"] == 0
    assert report["parameters"] == ARCHITECTURES["ShuffleV2_aux"]["params"]
    assert report["multiply_adds"] == ARCHITECTURES["ShuffleV2_aux"]["multi_adds"]
    _, variables = restore(run)
    jax.tree.map(np.testing.assert_array_equal, torch_weights.load_torch(tmp_path / "x", "ShuffleV2"), variables)


def test_the_page_serves_stablehlo_without_the_package(run, tmp_path):
    report = export(run, tmp_path / "student.stablehlo", "stablehlo", preprocess=True)
    assert report["bytes"] < 6e6
    assert report["parameters"] == ARCHITECTURES["ShuffleV2"]["params"]
    scripts = re.findall(r"```python\n(.*?)```", Path(ROOT, "docs/deploy.md").read_text(), re.S)
    (script,) = (one for one in scripts if "stablehlo" in one)
    assert script.count("\n") <= 15
    code = f"import sys; sys.modules['hsakd_jax'] = None\n{script}\nimport numpy; numpy.save('found', probabilities)"
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    network, variables = restore(run)
    normalised = normalise(images, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])
    expected = jax.nn.softmax(network.clone(branches=False).apply(variables, normalised).logits)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of jax2onnx
@pytest.mark.parametrize("name", ["resnet20_aux", "wrn_16_2", "vgg13_bn", "mobilenetV2", "ShuffleV1", "ShuffleV2"])
@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_whole_programs(file_format, name, tmp_path):
    """One network of each family; `python -m benchmarks.exports` does it for all."""
    if file_format == "onnx":  # needs the extra 'onnx', which .ci/run installs by itself
        pytest.importorskip("jax2onnx", reason="the extra 'onnx' is not installed; .ci/run does it")
    exported = golden(name)
    with jax.numpy_rank_promotion("allow"):  # jax2onnx is not as strict as our tests
        difference, greatest = compare(exported, FORMATS[file_format][0](exported, tmp_path / "x"))
    assert difference <= TOLERANCE * greatest
    if file_format == "stablehlo":
        assert jax.export.deserialize(bytearray((tmp_path / "x").read_bytes())).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.filterwarnings("ignore")  # of jax2onnx
@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_families_with_their_branches(file_format, family, tmp_path):
    """Whole networks, with and without branches, are rows of `python -m benchmarks.exports`."""
    if file_format == "onnx":
        pytest.importorskip("jax2onnx", reason="the extra 'onnx' is not installed; .ci/run does it")
    network, shape = Network(SMALL[family], 10), (32, 32, 3)
    config = run_config(shape=shape, data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    exported = Export(family, network, random_variables(network, shape), config, False)
    with jax.numpy_rank_promotion("allow"):  # jax2onnx is not as strict as our tests
        run = FORMATS[file_format][0](exported, tmp_path / "x")
        assert len(run(exported.images(1))) == 1 + len(network.architecture.stages)
        difference, greatest = compare(exported, run)
    assert difference <= TOLERANCE * greatest
    assert greatest > 0


def test_bad_input_leaves_nothing_behind(run, tmp_path, monkeypatch):
    for words, options in {
        "unknown format 'tflite': choose torch": {"file_format": "tflite"},
        "holds weights only: set --preprocess with": {"file_format": "torch", "preprocess": True},
        "leave out --with-branches": {"file_format": "stablehlo", "preprocess": True, "branches": True},
    }.items():
        with pytest.raises(UserError, match=words):
            export(run, tmp_path / "x", **options)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine exists: name another --output"):
        export(run, tmp_path / "mine", "safetensors")
    with pytest.raises(
        UserError, match="x.onnx has the name of a file of onnx: set --format=onnx, or another --output"
    ):
        export(run, tmp_path / "x.onnx", "stablehlo")
    with pytest.raises(UserError, match="can't write /proc/x"):
        export(run, "/proc/x", "safetensors")
    with pytest.raises(UserError, match="nowhere is not a folder: create it"):
        export(run, tmp_path / "nowhere" / "x", "safetensors")
    with pytest.raises(UserError, match="not a run directory"):
        export(tmp_path, tmp_path / "x", "safetensors")

    for value in (0, np.nan):

        def wrong(exported, path, value=value):
            path.write_text("")
            return lambda images: [np.full((len(images), 100), value)]

        monkeypatch.setitem(FORMATS, "safetensors", (wrong, False))
        with pytest.raises(UserError, match="differs by .* it was not kept"):
            export(run, tmp_path / "x", "safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_run_without_branches_has_none_to_export(tmp_path):
    network = create("resnet8_quarter", 10, branches=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    torch.save(
        {
            k: torch.from_numpy(np.array(v))
            for k, v in torch_weights.to_state_dict("resnet8_quarter", network, variables).items()
        },
        tmp_path / "x",
    )
    with pytest.raises(
        UserError, match="takes images of 1 channels: set --data, such as --data=digits of 1, or --mean"
    ):
        convert(tmp_path / "x", tmp_path / "run", Console())
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="mean and std belong together"):
        convert(tmp_path / "x", tmp_path / "run", Console(), image_size=8, mean=[0.3])
    convert(tmp_path / "x", tmp_path / "run", Console(), data="digits")
    with pytest.raises(UserError, match="has no branches"):
        export(tmp_path / "run", tmp_path / "y", "torch", branches=True)


def test_a_run_in_bfloat16_is_exported_to_onnx_in_float32(tmp_path, monkeypatch):
    config = run_config(student__dtype="bfloat16")
    directory = RunDirectory(tmp_path / "run")
    directory.acquire(config)
    shapes = initialiser(build_network(config.network)).eval_shape(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes))
    checkpoints.close()
    dtypes = []

    def write(exported, path):
        path.write_text("")
        dtypes.append(exported.network.dtype)
        return lambda images: exported.apply(exported.variables, images)

    for file_format in ("onnx", "stablehlo"):
        monkeypatch.setitem(FORMATS, file_format, (write, True))
    assert export(tmp_path / "run", tmp_path / "x.onnx", "onnx")["dtype"] == "float32"
    assert export(tmp_path / "run", tmp_path / "x.stablehlo", "stablehlo")["dtype"] == "bfloat16"
    assert dtypes == [None, jax.numpy.bfloat16]


def settings_of(run):
    """All that decides the input and the names of the outputs of a converted network."""
    config = RunDirectory(run).config()
    data = config.data
    sizes = (config.network.arch, config.network.image_shape, data.image_size, data.resize, data.crop)
    return sizes, (data.name, data.interpolation, data.mean, data.std), config.classes


@pytest.mark.parametrize(
    "flags",
    [
        {"data": "digits"},
        {"mean": [0.3], "std": [0.4], "image_size": 12, "arch": "resnet8_quarter"},
        {"mean": [0.3], "std": [0.4], "image_size": 10, "resize": 12, "interpolation": "bicubic"},
        {"data": "image_folder", "mean": [0.3], "std": [0.4], "image_size": 12, "resize": 12},
        {"mean": [0.3], "std": [0.4], "image_size": 64, "resize": 72, "interpolation": "bicubic"},
    ],
)
def test_exported_weights_contain_the_settings_of_their_run(flags, tmp_path, capsys):
    name, channels = ("mobilenet_v3_small", 3) if flags.get("image_size") == 64 else ("resnet8_quarter", 1)
    network = create(name, 10, branches=False)
    side = flags.get("image_size", 8)
    tensors = torch_weights.to_state_dict(name, network, initialise(network, (side, side, channels), 0))
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "names").write_text("".join(f"digit {i}\n" for i in range(10)))
    convert(tmp_path / "x.safetensors", tmp_path / "run", Console(), classes=str(tmp_path / "names"), **flags)
    export(tmp_path / "run", tmp_path / "y.safetensors", "safetensors")
    capsys.readouterr()
    convert(tmp_path / "y.safetensors", tmp_path / "again", Console())
    assert "assumed" not in capsys.readouterr().out
    assert settings_of(tmp_path / "again") == settings_of(tmp_path / "run")
    assert settings_of(tmp_path / "run")[2][3] == "digit 3"
    # Flags decide.
    (tmp_path / "names").write_text("".join(f"{i}\n" for i in range(10)))
    other = {"mean": [0.5], "std": [0.6], "image_size": 48, "interpolation": "bilinear", "data": "image_tree"}
    other |= {"resize": 56, "classes": str(tmp_path / "names")}
    convert(tmp_path / "y.safetensors", tmp_path / "other", Console(), **other)
    shape = (name, (48, 48, channels), 48, 56, "resized")
    assert settings_of(tmp_path / "other") == (shape, ("image_tree", "bilinear", (0.5,), (0.6,)), tuple("0123456789"))


def test_what_convert_takes_for_granted_is_printed(tmp_path, capsys):
    network = create("resnet8_quarter", 100, branches=False)
    tensors = torch_weights.to_state_dict("resnet8_quarter", network, initialise(network, (32, 32, 3), 0))
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, file)
    convert(file, tmp_path / "a", Console())
    assert "data cifar100 (assumed: data, mean, std, image_size)\n" in capsys.readouterr().out
    for i, (flags, words) in enumerate([
        ({"data": "cifar100"}, "data cifar100\n"),
        ({"data": "image_tree"}, "data image_tree (assumed: mean, std, image_size, resize, interpolation)\n"),
        ({"data": "image_tree", "resize": 40}, "images scaled to 40 (bilinear), "),
        ({"mean": [0.5], "std": [0.5]}, "data cifar100 (assumed: data, image_size)\n"),
    ]):  # fmt: skip
        convert(file, tmp_path / f"b{i}", Console(), **flags)
        assert words in capsys.readouterr().out
    # Images of a tree have many sizes, which a network of images of 32 pixels can't take as they are.
    assert settings_of(tmp_path / "b1")[0][2:] == (32, 32, "resized")
    assert settings_of(tmp_path / "b2")[0][2:] == (32, 40, "resized")
    record = {"arch": "resnet8_quarter", "data": None, "image_size": 32, "resize": None, "interpolation": "bilinear",
              "mean": [0.1], "std": [0.1], "classes": []}  # fmt: skip
    damages = {"mean": "x"}, {"data": "digits\n"}, {"classes": ["\x1b[2J"] * 100}, {"more": 1}, {"arch": "later"}
    for i, damage in enumerate(damages):
        safetensors.numpy.save_file(tensors, file, {torch_files.RECORD: json.dumps(record | damage)})
        convert(file, tmp_path / f"run{i}", Console())
        shown = capsys.readouterr().out
        assert "the settings of its run can't be read, and are not used" in shown
        assert "(assumed: data, mean, std, image_size)" in shown
        assert settings_of(tmp_path / f"run{i}")[1:] == settings_of(tmp_path / "a")[1:]
    safetensors.numpy.save_file(tensors, file, {torch_files.RECORD: json.dumps(record | {"classes": ["a", "b"]})})
    with pytest.raises(UserError, match="classes"):
        convert(file, tmp_path / "c", Console())
    assert not (tmp_path / "c").exists()
