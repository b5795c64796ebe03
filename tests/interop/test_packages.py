"""Pretrained weights of timm and torchvision: random ones, put where the packages keep their downloads."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import assert_refused
from float64 import enable_x64
from msgspec import structs
from PIL import Image

from hsakd_jax import create, load_torch
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.augment import prepare
from hsakd_jax.distillation import losses
from hsakd_jax.evaluation.accuracy import pixels_of, preprocessing
from hsakd_jax.interop import packages, torch_files, torch_weights
from hsakd_jax.interop.preprocessing import published
from hsakd_jax.models import NETWORKS, architecture
from hsakd_jax.runs.config import ConvertedConfig
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import restore

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
import safetensors.torch

REASON = "the extras 'timm' and 'torchvision' are not installed; .ci/run does it"


@pytest.fixture(scope="module")
def operators():
    """The operators that torchvision's wheel lacks beside a torch for CPUs, so that it does not import; none is called.

    Without effect where torchvision was imported before.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # there already
            continue
    return library


@pytest.fixture(scope="module")
def torchvision(operators):
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("torchvision", reason=REASON, exc_type=ImportError)


@pytest.fixture(scope="module")
def timm(torchvision):
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("timm", reason=REASON, exc_type=ImportError)


def write_torchvision(tmp_path, monkeypatch, model, url):
    """Golden weights where torch keeps the file of that address."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints" / url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    torch.save(golden(model), path)


def write_timm(tmp_path, monkeypatch, model, repository):
    """Golden weights where the client of the Hub keeps that repository's file."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, commit = tmp_path / f"models--{repository.replace('/', '--')}", "0" * 40
    for name in ("refs", f"snapshots/{commit}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    safetensors.torch.save_file(golden(model), folder / f"snapshots/{commit}/model.safetensors")


def golden(model):
    """The weights of the golden logits, which keep the signal alive, by the model's names."""
    return {
        name: torch.from_numpy(np.asarray(reference.tensor(name, tuple(value.shape), reference.SALT2), np.float32))
        if value.is_floating_point()
        else value
        for name, value in model.state_dict().items()
    }


def write_photograph(path):
    """An image whose sides and details are none that a scaling keeps."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(coarse).resize((640, 470), Image.Resampling.NEAREST)
    image.save(path)
    return image


def logits_of(run, path, **changed):
    """Those that evaluation and prediction compute for a file, with other settings of the data."""
    config = RunDirectory(run).config()
    config = structs.replace(config, data=structs.replace(config.data, **changed))
    network, variables = restore(run)
    images = jnp.asarray(pixels_of(config)(path.read_bytes()))[None]
    return np.asarray(jax.jit(network.apply)(variables, prepare(images, **preprocessing(config))).logits)


def assert_computes(run, path, transformed, model):
    """The run's logits of a file are those of the package, and with the other interpolation they are not."""
    with torch.inference_mode():
        expected = model.eval()(transformed[None]).numpy()
    other = {"bilinear": "bicubic", "bicubic": "bilinear"}[RunDirectory(run).config().data.interpolation]
    differences = [
        abs(logits_of(run, path, **changed) - expected).max() / abs(expected).max()
        for changed in ({}, {"interpolation": other})
    ]
    assert differences[0] < 1e-5
    assert differences[1] > 1e-3


@pytest.mark.parametrize(
    ("name", "full", "arch", "numbers"),
    [
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224", (224, 248, "bicubic")),
        ("resnet18.a1_in1k", "resnet18.a1_in1k", "resnet18_imagenet", (224, 235, "bicubic")),
    ],
)
def test_timm(name, full, arch, numbers, timm, call_command, tmp_path, monkeypatch):
    model = timm.create_model(name)
    write_timm(tmp_path / "cache", monkeypatch, model, f"timm/{full}")
    made = call_command("convert", f"--timm={name}", f"--output={tmp_path}/run")
    assert made.returncode == 0, made.stderr
    assert f"timm {full}: {arch}, without branches, 1000 classes" in made.stdout
    config, image = RunDirectory(tmp_path / "run").config(), write_photograph(tmp_path / "x.png")
    assert isinstance(config, ConvertedConfig)
    assert (config.data.image_size, config.data.resize, config.data.interpolation) == numbers
    assert (config.source, config.classes[0], len(config.classes)) == (f"timm {full}", "tench, Tinca tinca", 1000)
    model.load_state_dict(golden(model))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert_computes(tmp_path / "run", tmp_path / "x.png", transform(image), model)


@pytest.mark.parametrize(
    ("name", "arch", "numbers"),
    [
        ("mobilenet_v3_small", "mobilenet_v3_small", (224, 256, "bilinear")),
        ("EfficientNet_B0_Weights.IMAGENET1K_V1", "efficientnet_b0", (224, 256, "bicubic")),
    ],
)
def test_torchvision(name, arch, numbers, torchvision, call_command, tmp_path, monkeypatch):
    models = torchvision.models
    weights = models.get_model_weights(arch).DEFAULT
    model = models.get_model(arch, weights=None)
    write_torchvision(tmp_path / "cache", monkeypatch, model, weights.url)
    made = call_command("convert", f"--torchvision={name}", f"--output={tmp_path}/run")
    assert made.returncode == 0, made.stderr
    assert f"torchvision {weights}: {arch}, without branches, 1000 classes" in made.stdout
    config, image = RunDirectory(tmp_path / "run").config(), write_photograph(tmp_path / "x.png")
    assert isinstance(config, ConvertedConfig)
    assert (config.data.image_size, config.data.resize, config.data.interpolation) == numbers
    assert (config.source, config.classes[:2]) == (f"torchvision {weights}", ("tench", "goldfish"))
    model.load_state_dict(golden(model))
    assert_computes(tmp_path / "run", tmp_path / "x.png", weights.transforms()(image), model)


def test_published_preprocessing_is_that_of_the_packages(timm, torchvision):
    """Of each of our networks for ImageNet."""
    models = torchvision.models
    theirs = {ours: name for name, ours in reference.OURS.items()}
    for ours in (name for name in NETWORKS if architecture(name).for_imagenet):
        name, found = theirs.get(ours, ours.removesuffix("_imagenet")), published(ours, "imagenet2012")
        if name in models.list_models(module=models):
            settings = models.get_model_weights(name).IMAGENET1K_V1.transforms()
            size, resize, filtered = *settings.crop_size, *settings.resize_size, settings.interpolation.value
            mean, std = settings.mean, settings.std
        else:
            settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
            _, _, size = settings["input_size"]
            resize, filtered = int(size / settings["crop_pct"]), settings["interpolation"]
            mean, std = settings["mean"], settings["std"]
        assert found == (size, resize, filtered, tuple(mean), tuple(std)), name


def test_other_weights_are_refused(timm, torchvision, call_command, tmp_path, monkeypatch):
    def refused(*flags_and_words):
        *flags, words = flags_and_words
        assert_refused(call_command("convert", f"--output={tmp_path}/run", *flags), *words)
        assert not (tmp_path / "run").exists()

    refused("--timm=resnot", ["timm resnot can't be loaded (Unknown model (resnot)"])
    refused("--torchvision=resnet_18", ["torchvision resnet_18 can't be loaded (Unknown model resnet_18)"])
    refused("--torchvision=ResNet18_Weights.V3", ["can't be loaded (no 'V3'): choose a network such as resnet50"])
    refused("--torchvision=fasterrcnn_resnet50_fpn", ["torchvision fasterrcnn_resnet50_fpn is no classifier"])
    refused("--timm=resnet26", ["timm resnet26 has not the tensors of one of our networks, resnet18_imagenet, "])
    write_timm(tmp_path / "cache", monkeypatch, timm.create_model("resnetblur18"), "timm/absent")
    refused("--timm=resnet18", ["timm resnet18 can't be loaded (", ": check the connection"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: 1 / 0)
    refused("--torchvision=resnet18", ["ResNet18_Weights.IMAGENET1K_V1 can't be loaded (division by zero): check"])


def test_other_layers_with_the_same_tensors_are_refused(timm):
    """A ResNet with blurred pools has the tensors of one without, and other logits."""
    model = timm.create_model("resnetblur18")
    model.load_state_dict(golden(model))
    tensors = {name: value.numpy() for name, value in golden(model).items()}
    tensors = torch_files.take(tensors, "x").tensors
    found = torch_weights.recognise(tensors, "", "x")
    pretrained = packages.Pretrained("x", tensors, published(found.name, ""), (), packages.logits_of(model))
    with pytest.raises(UserError, match=r"x has the tensors of our network and other layers: its logits differ by \d"):
        packages.check(pretrained, found.network(), torch_weights.to_variables(tensors, found, ""))


def test_gradients_are_those_of_torchvision(torchvision):
    """In float64, of all parameters, of a network with grouped convolutions."""
    name = "regnet_y_400mf"
    model = torchvision.models.get_model(name).double().train()
    model.load_state_dict(golden(model))
    random, labels = np.random.default_rng(0), np.arange(4)
    images = random.standard_normal((4, 64, 64, 3))
    logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    expected = {key: value.grad.numpy() for key, value in model.named_parameters()}
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    network, given = create(name, 1000, branches=False), load_torch(tensors, name)
    with enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), given)

        def loss(params):
            inputs = {**variables, "params": params}, jnp.asarray(images), True
            outputs, _ = network.apply(*inputs, mutable=["batch_stats"])
            return losses.cross_entropy(outputs.logits, jnp.asarray(labels))

        gradients = jax.jit(jax.grad(loss))(variables["params"])
        ours = torch_weights.to_state_dict(name, network, {**variables, "params": gradients})
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-6 * abs(value).max(), err_msg=key)


def test_packages_are_asked_for(call_command, tmp_path, monkeypatch):
    for package in packages.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
        done = call_command("convert", f"--{package}=resnet18", f"--output={tmp_path}/run")
        assert_refused(done, f"--{package} needs the package: pip install -e '.[{package}]'")
        monkeypatch.delitem(sys.modules, package)
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator nms does not exist')")
        with monkeypatch.context() as broken:
            broken.syspath_prepend(tmp_path)
            done = call_command("convert", f"--{package}=resnet18", f"--output={tmp_path}/run")
        assert_refused(done, f"--{package}: the package can't be imported (operator nms does not exist): install")
    both = call_command("convert", "--timm=resnet18", "x.pth", f"--output={tmp_path}/run")
    assert_refused(both, "the weights come from one place: set CHECKPOINT, --timm or --torchvision")
    part = call_command("convert", "--timm=resnet18", "--part=ema", f"--output={tmp_path}/run")
    assert_refused(part, "--part selects weights of a file")
