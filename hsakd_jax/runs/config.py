"""The typed config of one run: everything that decides it, as config.json stores it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import explain

MAX_SEED = 2**32 - 1  # JAX's generator holds 32 bits
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Side = Annotated[int, Meta(ge=1, le=2**16)]  # pixels
Channels = Annotated[int, Meta(ge=1, le=2**10)]  # of images
Features = Annotated[int, Meta(ge=1, le=2**20)]  # channels of maps
Fraction = Annotated[float, Meta(gt=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0, le=1e30)]
Number = int | float
_UNIT = "as a fraction of 255"
Mean = Annotated[float, Meta(ge=0, le=1, description=_UNIT)]  # of a channel
Deviation = Annotated[float, Meta(ge=1e-6, le=1, description=_UNIT)]
Batch = Annotated[int, Meta(ge=1, le=2**16)]  # images
Epochs = Annotated[int, Meta(ge=1, le=10**6)]
Warmup = Annotated[int, Meta(ge=0, le=10**6)]  # epochs
Milestone = Annotated[int, Meta(ge=0, le=10**6)] | Annotated[float, Meta(ge=0, le=1e6)]  # epochs
Dtype = Literal["float32", "bfloat16"]
Checkpoint = Literal["last", "best"]
Decoding = Literal["upright rgb 1"]
Interpolation = Literal["bilinear", "bicubic"]
# An argument of the function of a term: a temperature, a list of branches, a switch.
Option = bool | int | float | str | tuple[Number, ...]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the config: immutable, and read strictly."""


class Network(Section, frozen=True, kw_only=True):
    """The trained network or networks.

    Attributes:
      arch: name of the network, a key of `models.NETWORKS`.
      dtype: compute dtype.
      branches: whether it has auxiliary classifiers.
      peers: networks of an online run, which learn together; empty for any other run.
      num_classes: N, how many classes.
      image_shape: [H, W, C].
      projector: [H, W, C] of the teacher's map before its global average pool, to which SimKD's head projects. None
        where the network has its own head.
    """

    arch: str
    dtype: Dtype
    branches: bool
    peers: tuple[str, ...]
    num_classes: Annotated[int, Meta(ge=2, le=2**24)]
    image_shape: tuple[Side, Side, Channels]
    projector: tuple[Side, Side, Features] | None


class Data(Section, frozen=True, kw_only=True):
    """Dataset and preprocessing.

    Attributes:
      name: of the dataset: a key of `data.builders.BUILDERS`, image_tree, or one that TFDS prepared; None where a
        converted checkpoint does not name it.
      dir: folder of the dataset; None for the default folder of TFDS.
      image_size: side of the crops, or of the images of an image_folder; None where images keep their size.
      resize: length that the shorter side of a test image is scaled to before its centre is cropped; None for
        `image_size`.
      interpolation: how images are scaled: 'bilinear' or 'bicubic', each with antialiasing.
      crop: 'pad' (zero-padding, then a random crop) or 'resized' (a random area, scaled).
      pad: pixels on each side, for 'pad'.
      flip: whether images are mirrored at random.
      mean: of the normalisation, one number per channel or one for all, as a fraction of 255.
      std: standard deviation, as `mean`.
      fraction: of the training images that are used.
      validation: fraction of the training images that is held out.
      decoding: name of the rule by which image files become pixels (see `data.image_files`).
      max_pixels: the greatest number of pixels of an image file that is read; None for
        `data.image_files.MAX_PIXELS`.
    """

    name: str | None
    dir: str | None
    image_size: Side | None
    resize: Side | None
    interpolation: Interpolation
    crop: Literal["pad", "resized"]
    pad: Annotated[int, Meta(ge=0, le=2**16)]
    flip: bool
    mean: Annotated[tuple[Mean, ...], Meta(min_length=1)]
    std: Annotated[tuple[Deviation, ...], Meta(min_length=1)]
    fraction: Fraction
    validation: Annotated[float, Meta(ge=0, lt=1)]
    decoding: Decoding
    max_pixels: Annotated[int, Meta(ge=1, le=2**40)] | None


class Training(Section, frozen=True, kw_only=True):
    """Optimiser, schedule and start.

    Attributes:
      epochs: length of the training.
      batch: images per step, over all devices.
      lr: learning rate at `lr_batch` images per step.
      lr_batch: batch that `lr` is meant for; `lr` is scaled by batch / lr_batch. None uses `lr` unchanged.
      optimizer: 'sgd' or 'adamw'.
      schedule: 'multi_step' or 'cosine'.
      milestones: epochs at which `gamma` multiplies the learning rate.
      gamma: see `milestones`.
      warmup: epochs of linear warm-up of the learning rate.
      momentum: of SGD; AdamW does not use it.
      nesterov: whether SGD uses Nesterov's momentum.
      weight_decay: SGD adds it, times the parameters, to the gradient. AdamW shrinks the parameters by it, times the
        learning rate.
      accumulate: micro-batches per step.
      remat: whether the backward pass recomputes the activations inside stages.
      batch_norm_groups: parts of a batch, each with its own BatchNorm statistics.
      trainable: regular expression over parameter paths that selects the trained parameters; None for all.
      rotated: whether the network sees each image in all four rotations.
      crop_rotations: whether each rotation of an image is cropped on its own, after it is rotated.
      strong_view: whether the network also sees a second view of each image (see `data.rand_augment`), upright.
      init: run directory that the parameters come from, relative to this run's or absolute; None for a random start.
      fresh_last_layer: whether the last layer is random although `init` has one.
      copy_branches: whether branches that `init` does not have start as copies of the backbone's stages, where shapes
        are equal; else at random.
    """

    epochs: Epochs
    batch: Batch
    lr: NotNegative
    lr_batch: Batch | None
    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["multi_step", "cosine"]
    milestones: tuple[Milestone, ...]
    gamma: NotNegative
    warmup: Warmup
    momentum: Annotated[float, Meta(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NotNegative
    accumulate: Count
    remat: bool
    batch_norm_groups: Count
    trainable: str | None
    rotated: bool
    crop_rotations: bool
    strong_view: bool
    init: str | None
    fresh_last_layer: bool
    copy_branches: bool

    def steps_per_epoch(self, images: int) -> int:
        """Steps per epoch of that many training images; those that do not fill a batch are left out."""
        return images // self.batch


class Term(Section, frozen=True, kw_only=True):
    """One term of an objective.

    Attributes:
      weight: factor of the term in the loss; 0 leaves the term out.
      warmup: epochs over which the weight grows linearly; it is constant within an epoch.
      decay: the epoch after which the weight falls along half a cosine, to 0 in the last epoch; None for no decay.
      options: arguments of the term's function.
    """

    weight: NotNegative
    warmup: Warmup
    decay: Warmup | None
    options: dict[str, Option]


class Objective(Section, frozen=True, kw_only=True):
    """The objective of a run.

    Attributes:
      kind: a key of `distillation.objectives.OBJECTIVES`, or 'methods' for the terms of `distillation.methods`.
      terms: by name.
    """

    kind: str
    terms: dict[str, Term]


class Teacher(Section, frozen=True, kw_only=True):
    """The trained network that teaches.

    Attributes:
      workdir: its run directory, relative to this run's or absolute.
      checkpoint: 'last' or 'best'.
      peer: which network of an online run teaches, from 1; 1 for any other run.
      dtype: compute dtype of the teacher; None for the one that it was trained in.
    """

    workdir: str
    checkpoint: Checkpoint
    peer: Count
    dtype: Dtype | None


class Evaluation(Section, frozen=True, kw_only=True):
    """When a run measures itself, and the metric that selects its best epoch.

    Attributes:
      every: epochs between two evaluations.
      select_by: accuracy that selects the best epoch. 'top1', or 'joint', the greatest of the branches' accuracies on
        joint labels, by which the reference selects a teacher.
    """

    every: Count
    select_by: Literal["top1", "joint"]


class Logging(Section, frozen=True, kw_only=True):
    """The records of a run.

    Attributes:
      every: steps between two records of training.
      tracking: experiment trackers that get the records too.
      profile: first and last step of a trace, counted from 0, the last one left out; None for no trace.
    """

    every: Count
    tracking: tuple[str, ...]
    profile: tuple[Annotated[int, Meta(ge=0)], Count] | None


class Config(Section, frozen=True, kw_only=True):
    """The part that all run directories have: a network, its classes and its data.

    Attributes:
      classes: their names; empty where a converted checkpoint does not have them.
      network: its size and shape.
      data: dataset and preprocessing.
      eval_batch: images per evaluation step.
    """

    classes: tuple[str, ...]
    network: Network
    data: Data
    eval_batch: Batch

    def __post_init__(self) -> None:
        channels = self.network.image_shape[-1]
        if self.classes and len(self.classes) != self.network.num_classes:
            raise ValueError(
                f"classes has {len(self.classes)} names, not network.num_classes, {self.network.num_classes}"
            )
        for key, numbers in (("mean", self.data.mean), ("std", self.data.std)):
            if len(numbers) not in (1, channels):
                raise ValueError(
                    f"data.{key} is {numbers}, and the images have {channels} channels: set one number per channel"
                )
        side = self.network.image_shape[0]
        if self.data.crop == "resized" and not side <= (self.data.resize or side):
            raise ValueError(f"data.resize is {self.data.resize}, below the side of the crops, {side}")
        if self.data.crop == "resized" and side != self.network.image_shape[1]:
            raise ValueError(f"network.image_shape is {list(self.network.image_shape)}, and crops are square")


class RunConfig(Config, frozen=True, kw_only=True, tag_field="format", tag="hsakd_jax run 1"):
    """All settings that decide one run. The tag marks a config.json of this package, with its version.

    Attributes:
      recipe: name of the recipe, for tables; nothing is looked up by it when a run resumes.
      seed: of initialisation, order, augmentation and subsets.
      training: optimiser, schedule and start.
      objective: the terms to minimise.
      teacher: None without one.
      evaluation: when it measures itself.
      logging: its records.
      command: arguments of the command that trained it; None where no command did.
    """

    recipe: str
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    training: Training
    objective: Objective
    teacher: Teacher | None
    evaluation: Evaluation
    logging: Logging
    command: tuple[str, ...] | None


class ConvertedConfig(Config, frozen=True, kw_only=True, tag_field="format", tag="hsakd_jax checkpoint 1"):
    """A PyTorch checkpoint as a run directory.

    Attributes:
      source: name of the file.
      sha256: of the file, in hexadecimal.
      part: which of several sets of weights in the file; None for the usual one.
    """

    source: str
    sha256: str
    part: str | None

    @property
    def recipe(self) -> str:
        """Its name in tables."""
        return "converted"


AnyConfig = RunConfig | ConvertedConfig
T = TypeVar("T", RunConfig, ConvertedConfig)


def typed(kind: type[T], values: Mapping[str, Any], label: str) -> T:
    """The typed config of plain values.

    Args:
      kind: of the config.
      values: by key.
      label: first words of an error.

    Raises:
      UserError: values of the wrong type, out of range, or that contradict each other; the line names the key.
    """
    try:
        return msgspec.convert({"format": kind.__struct_config__.tag, **values}, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{label}: {explain(error)}") from error
