"""Pretrained weights of the packages timm and torchvision, which download them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import install
from hsakd_jax.interop import torch_files, torch_weights
from hsakd_jax.interop.preprocessing import Preprocessing
from hsakd_jax.models import NETWORKS, architecture
from hsakd_jax.models.network import Network

PACKAGES = ("timm", "torchvision")
# Greatest difference of a logit over the greatest logit. Deep networks reach 1e-4 in float32.
TOLERANCE = 1e-3


class Pretrained(NamedTuple):
    """A pretrained network of a package.

    Attributes:
      name: of the weights in the package, such as 'timm resnet50.a1_in1k'.
      tensors: the state dict.
      preprocessing: of its evaluation.
      classes: their names; empty where the package does not have them.
      logits: from images, float32 [B, H, W, C], normalised, to logits, float32 [B, N].
    """

    name: str
    tensors: torch_files.StateDict
    preprocessing: Preprocessing
    classes: Sequence[str]
    logits: Callable[[np.ndarray], np.ndarray]

    def sha256(self) -> str:
        """Of the tensors and their names, in hexadecimal."""
        found = hashlib.sha256()
        for key in sorted(self.tensors):
            found.update(key.encode())
            found.update(self.tensors[key].tobytes())
        return found.hexdigest()


def load(package: str, name: str) -> Pretrained:
    """Pretrained weights, which the package downloads unless its cache has them.

    Args:
      package: one of `PACKAGES`.
      name: of the weights in the package. timm: 'resnet50', or 'resnet50.a1_in1k' with a tag. torchvision: 'resnet50'
        for its default weights, or 'ResNet50_Weights.IMAGENET1K_V1'.

    Raises:
      UserError: the package is not installed, has no such weights or can't load them, or they are of none of our
        networks.
    """
    return {"timm": _from_timm, "torchvision": _from_torchvision}[package](name)


def check(pretrained: Pretrained, network: Network, variables: Mapping[str, Any]) -> None:
    """Compares the logits of a converted network with those of the package.

    Networks of other layers can have the same tensors, such as ResNets with blurred pools.

    Raises:
      UserError: they differ.
    """
    side, channels = pretrained.preprocessing.image_size, len(pretrained.preprocessing.mean)
    image = np.random.default_rng(0).standard_normal((1, side, side, channels), np.float32)
    expected = pretrained.logits(image)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(network.apply)(dict(variables), image).logits)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{pretrained.name} has the tensors of our network and other layers: its logits differ by "
            f"{difference:.1e} of the greatest; choose other weights"
        )


def logits_of(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a model of PyTorch that `Pretrained.logits` is."""
    import torch

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return logits


def _from_timm(name: str) -> Pretrained:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # builds of torch and torchvision that do not fit
        raise _missing("timm", error) from error
    label = f"timm {name}"
    model = _call(lambda: timm.create_model(name, pretrained=False), label, "timm.list_pretrained() has the names")
    _refuse_others(model, label)
    found = timm.data.resolve_model_data_config(model)
    if found["crop_mode"] != "center":
        raise UserError(f"{label} takes images in the crop mode {found['crop_mode']!r}, and runs here crop the middle")
    model = _call(lambda: timm.create_model(name, pretrained=True), label, _DOWNLOAD)
    config, side = model.pretrained_cfg, found["input_size"][-1]
    tag = config.get("tag") or ""
    in1k = tag.endswith("in1k") and model.num_classes == 1000
    return Pretrained(
        label if not tag or name.endswith(f".{tag}") else f"{label}.{tag}",
        _tensors(model, label),
        Preprocessing(side, math.floor(side / found["crop_pct"]), found["interpolation"], found["mean"], found["std"]),
        timm.data.ImageNetInfo().label_descriptions() if in1k else (),
        logits_of(model),
    )


def _from_torchvision(name: str) -> Pretrained:
    try:
        from torchvision import models  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # builds of torch and torchvision that do not fit
        raise _missing("torchvision", error) from error
    label, known = f"torchvision {name}", "choose a network such as resnet50, or ResNet50_Weights.IMAGENET1K_V1"
    weights = _call(lambda: _torchvision_weights(models, name), label, known)
    of = {models.get_model_weights(one): one for one in models.list_models(module=models)}
    if type(weights) not in of:
        raise UserError(f"{label} is no classifier: {known}")
    _refuse_others(models.get_model(of[type(weights)], weights=None), label)
    label = f"torchvision {type(weights).__name__}.{weights.name}"
    model = _call(lambda: models.get_model(of[type(weights)], weights=weights), label, _DOWNLOAD)
    settings = weights.transforms()
    (side,), (resize,) = settings.crop_size, settings.resize_size
    return Pretrained(
        label,
        _tensors(model, label),
        Preprocessing(side, resize, settings.interpolation.value, settings.mean, settings.std),
        weights.meta.get("categories", ()),
        logits_of(model),
    )


def _torchvision_weights(models: Any, name: str) -> Any:
    return models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT


_DOWNLOAD = "check the connection, or convert a file that was downloaded elsewhere"


def _missing(package: str, error: Exception) -> UserError:
    if find_spec(package):
        return UserError(
            f"--{package}: the package can't be imported ({str(error).splitlines()[0]}): install versions of torch, "
            "torchvision and timm that belong together"
        )
    return UserError(f"--{package} needs the package: {install(package)} ({str(error).splitlines()[0]})")


def _call(function: Callable[[], Any], label: str, remedy: str) -> Any:
    try:
        return function()
    except Exception as error:  # a package raises errors of many kinds, those of the network included
        message = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        reason = f"no {message}" if isinstance(error, KeyError) else message
        raise UserError(f"{label} can't be loaded ({reason}): {remedy}") from error


def _refuse_others(model: Any, label: str) -> None:
    """Before anything is downloaded."""
    try:
        torch_weights.recognise(_tensors(model, label), "", label)
    except UserError as error:
        ours = [name for name in NETWORKS if architecture(name).for_imagenet]
        raise UserError(
            f"{label} has not the tensors of one of our networks, {', '.join(ours)}: choose one of these, under the "
            "name that timm or torchvision has for it; ConvNeXt, EfficientNet, MobileNetV2 and V3, RegNet and VGG are "
            "those of torchvision, --torchvision=NAME"
        ) from error


def _tensors(model: Any, label: str) -> torch_files.StateDict:
    return torch_files.take(model.state_dict(), label).tensors
