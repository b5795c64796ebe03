"""Preprocessing of published networks: the settings with which their accuracies were measured."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from hsakd_jax.core.files import NOT_VALID
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.models import NETWORKS, architecture
from hsakd_jax.runs.compare import CLOSE, in_words
from hsakd_jax.runs.config import Config, Deviation, Interpolation, Mean, Side


class Preprocessing(NamedTuple):
    """From the pixels of an image to the input of a network.

    Attributes:
      image_size: side of the crop of the middle.
      resize: length to which the shorter side of the image is scaled before the crop.
      interpolation: see `runs.config.Data`.
      mean: of the normalisation, one number per channel.
      std: as `mean`.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]


Line = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]  # a stranger's, shown in terminals


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a run that exported weights contain, so that `convert` has nothing to assume.

    Attributes:
      arch: name of the network.
      data: name of its dataset; None where it is not known.
      resize: None where images are not scaled.
      classes: names of the classes; () where they are not known.
      image_size, interpolation, mean, std: as in `Preprocessing`.
    """

    arch: str
    data: Line | None
    image_size: Side
    resize: Side | None
    interpolation: Interpolation
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    classes: tuple[Line, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """From pixels to the input of the network."""
        return Preprocessing(self.image_size, self.resize or self.image_size, self.interpolation, self.mean, self.std)


WITHOUT_RECORD = "images are not square, or the name of a class is empty or has a control character such as a tab"


def record_of(config: Config) -> Record | None:
    """The settings of a run that its exported weights contain; None where `convert` can't have them."""
    side, width, _ = config.network.image_shape
    if side != width:
        return None
    record = Record(
        arch=config.network.arch,
        data=config.data.name,
        image_size=side,
        resize=(config.data.resize or side) if config.data.crop == "resized" else None,
        interpolation=config.data.interpolation,
        mean=config.data.mean,
        std=config.data.std,
        classes=config.classes,
    )
    return read_record(msgspec.json.encode(record))


def read_record(content: str | bytes) -> Record | None:
    """The settings that an exported file contains; None where they are not valid, or of an unknown network."""
    try:
        record = msgspec.json.decode(content, type=Record)
    except NOT_VALID:
        return None
    return record if record.arch in NETWORKS else None


def record_difference(theirs: Record, ours: Record) -> str:
    """The differing settings of the images of two networks, in words; '' where there are none."""
    found = {}
    for key in Preprocessing._fields:
        there, here = (getattr(one.preprocessing, key) for one in (theirs, ours))
        if key == "interpolation" and theirs.resize is None and ours.resize is None:
            continue  # nothing is scaled
        if there != here and not (key in ("mean", "std") and np.allclose(there, here, rtol=0, atol=CLOSE)):
            found[key] = (there, here)
    return ", ".join(in_words(found, "there", "here"))


SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # of the images, which networks for small images do not scale
_MEAN_STD = tuple(NORMALISATION["imagenet2012"].values())
# Of the weights IMAGENET1K_V1 of torchvision 0.28 (`weights.transforms()`), where they are not `_USUAL`. Those of timm
# 1.0.31 (`timm.data.resolve_model_data_config`) for DeiT and MobileNetV1. tests/interop/test_packages.py compares.
_USUAL = Preprocessing(224, 256, "bilinear", *_MEAN_STD)
_PUBLISHED = {
    "efficientnet_b0": _USUAL._replace(interpolation="bicubic"),
    "efficientnet_b1": _USUAL._replace(image_size=240, interpolation="bicubic"),
    "efficientnet_b2": _USUAL._replace(image_size=288, resize=288, interpolation="bicubic"),
    "convnext_tiny": _USUAL._replace(resize=236),
    "deit_tiny_patch16_224": _USUAL._replace(resize=248, interpolation="bicubic"),
    "deit_small_patch16_224": _USUAL._replace(resize=248, interpolation="bicubic"),
    "mobilenetv1_100": _USUAL._replace(interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
}


def published(name: str, data: str) -> Preprocessing:
    """The usual preprocessing of a network's published weights.

    Args:
      name: of the network.
      data: name of the dataset that it was trained on; '' where it is not known.
    """
    if architecture(name).for_imagenet:
        found = _PUBLISHED.get(name, _USUAL)
        normal = {} if data == "imagenet2012" else NORMALISATION.get(data, {})
        return found._replace(**normal)
    side = SIDES.get(data, architecture(name).image_size)
    return Preprocessing(side, side, "bilinear", **NORMALISATION.get(data, NORMALISATION["cifar100"]))
