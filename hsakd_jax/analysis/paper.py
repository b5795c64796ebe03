"""The paper's numbers and settings: HSAKD (IJCAI 2021) and, in tables marked so, HSSAKD (TNNLS 2022)."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of a table: a pair of networks on a dataset.

    Attributes:
      dataset: `data.name` of the config.
      teacher: a key of `models.NETWORKS`; None without a teacher.
      student: a key of `models.NETWORKS`.
    """

    dataset: str
    teacher: str | None
    student: str


class Number(NamedTuple):
    """Accuracies in %, at the best epoch.

    Attributes:
      top1: mean over the runs (mAP in tables marked so).
      std: its standard deviation; None where the paper has none.
      top5: None where the paper has none.
    """

    top1: float
    std: float | None = None
    top5: float | None = None


class Table(NamedTuple):
    """One of the paper's tables.

    Attributes:
      title: its heading.
      numbers: by method, then by column. A method is a key of `recipes.RECIPES`, or the paper's word where there is
        no recipe.
      note: a remark for the reader; None without one.
    """

    title: str
    numbers: dict[str, dict[Column, Number]]
    note: str | None = None


def _row(columns: Iterable[Column], *numbers: float | tuple[float, ...]) -> dict[Column, Number]:
    found = [Number(*n) if isinstance(n, tuple) else Number(n) for n in numbers]
    return dict(zip(columns, found, strict=True))


def _top5(**rows: tuple[float, float]) -> dict[str, dict[Column, Number]]:
    return {row: {IMAGENET: Number(top1, top5=top5)} for row, (top1, top5) in rows.items()}


CIFAR = tuple(
    Column("cifar100", teacher, student)
    for teacher, student in (
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("resnet56", "resnet20"),
        ("resnet32x4", "resnet8x4"),
        ("vgg13_bn", "mobilenetV2"),
        ("ResNet50", "mobilenetV2"),
        ("wrn_40_2", "ShuffleV1"),
        ("resnet32x4", "ShuffleV2"),
    )
)
IMAGENET = Column("imagenet2012", "resnet34_imagenet", "resnet18_imagenet")
ONLINE = tuple(
    Column("cifar100", None, network)
    for network in (
        "wrn_40_2", "wrn_40_1", "resnet56", "resnet32x4", "vgg13_bn", "mobilenetV2", "ShuffleV1", "ShuffleV2"
    )
)  # fmt: skip
ABLATED = (CIFAR[0], CIFAR[6])
PLAIN = (Column("cifar100", None, "ResNet18"), Column("tiny_imagenet", None, "ResNet18"))
PROBED = (Column("stl10", "vgg13_bn", "mobilenetV2"), Column("tiny_imagenet", "vgg13_bn", "mobilenetV2"))
VOC = Column("voc", "resnet34_imagenet", "resnet18_imagenet")

TABLES = {
    "cifar100": Table(
        "CIFAR-100",
        {
            "backbone": _row(CIFAR, 76.45, 76.45, 73.44, 79.63, 74.64, 79.34, 76.45, 79.63),
            "teacher": _row(CIFAR, 80.70, 80.70, 77.20, 83.73, 78.48, 83.85, 80.70, 83.73),
            "baseline": _row(
                CIFAR, (73.57, 0.23), (71.95, 0.59), (69.62, 0.26), (72.95, 0.24),
                (73.51, 0.26), (73.51, 0.26), (71.74, 0.35), (72.96, 0.33),
            ),
            "kd": _row(
                CIFAR, (75.23, 0.23), (73.90, 0.44), (70.91, 0.10), (73.54, 0.26),
                (75.21, 0.24), (75.80, 0.46), (75.83, 0.18), (75.43, 0.33),
            ),
            "fitnet": _row(
                CIFAR, (75.30, 0.42), (74.30, 0.42), (71.21, 0.16), (75.37, 0.12),
                (75.42, 0.34), (75.41, 0.07), (76.27, 0.18), (76.91, 0.06),
            ),
            "at": _row(
                CIFAR, (75.64, 0.31), (74.32, 0.23), (71.35, 0.09), (75.06, 0.19),
                (74.08, 0.21), (76.57, 0.20), (76.51, 0.44), (76.32, 0.12),
            ),
            "AB": _row(
                CIFAR, (71.26, 1.32), (74.55, 0.46), (71.56, 0.19), (74.31, 0.09),
                (74.98, 0.44), (75.87, 0.39), (76.43, 0.09), (76.40, 0.29),
            ),
            "vid": _row(
                CIFAR, (75.31, 0.22), (74.23, 0.28), (71.35, 0.09), (75.07, 0.35),
                (75.67, 0.13), (75.97, 0.08), (76.24, 0.44), (75.98, 0.41),
            ),
            "rkd": _row(
                CIFAR, (75.33, 0.14), (73.90, 0.26), (71.67, 0.08), (74.17, 0.22),
                (75.54, 0.36), (76.20, 0.06), (75.74, 0.32), (75.42, 0.25),
            ),
            "sp": _row(
                CIFAR, (74.35, 0.59), (72.91, 0.24), (71.45, 0.38), (75.44, 0.11),
                (75.68, 0.35), (76.35, 0.14), (76.40, 0.37), (76.43, 0.21),
            ),
            "cc": _row(
                CIFAR, (75.30, 0.03), (74.46, 0.05), (71.44, 0.10), (74.40, 0.24),
                (75.66, 0.33), (76.05, 0.25), (75.63, 0.30), (75.74, 0.18),
            ),
            "crd": _row(
                CIFAR, (75.81, 0.33), (74.76, 0.25), (71.83, 0.42), (75.77, 0.24),
                (76.13, 0.16), (76.89, 0.27), (76.37, 0.23), (76.51, 0.09),
            ),
            "sskd": _row(
                CIFAR, (76.16, 0.17), (75.84, 0.04), (70.80, 0.02), (75.83, 0.29),
                (76.21, 0.16), (78.21, 0.16), (76.71, 0.31), (77.64, 0.24),
            ),
            "student_frozen": _row(
                CIFAR, (77.20, 0.17), (77.00, 0.21), (72.58, 0.33), (77.26, 0.14),
                (77.45, 0.21), (78.79, 0.11), (78.51, 0.20), (79.93, 0.11),
            ),
            "student": _row(
                CIFAR, (78.67, 0.20), (78.12, 0.25), (73.73, 0.10), (77.69, 0.05),
                (79.27, 0.12), (79.43, 0.24), (80.11, 0.32), (80.86, 0.15),
            ),
        },
        "AB is not part of this package",
    ),
    "imagenet2012": Table(
        "ImageNet",
        _top5(
            backbone=(73.31, 91.42), teacher=(75.48, 92.67), baseline=(69.75, 89.07), kd=(70.66, 89.88),
            at=(70.70, 90.00), cc=(69.96, 89.17), sp=(70.62, 89.80), rkd=(71.34, 90.37), crd=(71.38, 90.49),
            sskd=(71.62, 90.67), student_frozen=(72.16, 90.85), student=(72.39, 91.00),
        ),
    ),
    "online": Table(
        "Online: networks teach each other (HSSAKD; in the paper two equal networks)",
        {
            "baseline": {
                **_row(
                    ONLINE, (76.44, 0.20), (71.95, 0.59), (73.00, 0.17), (79.56, 0.23),
                    (75.35, 0.21), (73.51, 0.26), (71.74, 0.35), (72.96, 0.33),
                ),
                Column("imagenet2012", None, "resnet18_imagenet"): Number(69.75),
            },
            "mutual": {
                **_row(
                    ONLINE, (82.58, 0.21), (76.67, 0.41), (78.16, 0.56), (84.91, 0.19),
                    (80.44, 0.05), (78.85, 0.13), (78.34, 0.03), (79.98, 0.12),
                ),
                Column("imagenet2012", None, "resnet18_imagenet"): Number(71.49),
            },
        },
        "the mean of the networks of a run",
    ),
    "few_shot": Table(
        "Few-shot: a fraction of the training images of each class",
        {
            "kd_25": {CIFAR[2]: Number(65.15)},
            "crd_25": {CIFAR[2]: Number(65.80)},
            "sskd_25": {CIFAR[2]: Number(67.82)},
            "student_25": {CIFAR[2]: Number(68.50)},
            "kd_50": {CIFAR[2]: Number(68.61)},
            "crd_50": {CIFAR[2]: Number(69.91)},
            "sskd_50": {CIFAR[2]: Number(70.08)},
            "student_50": {CIFAR[2]: Number(72.18)},
            "kd_75": {CIFAR[2]: Number(70.34)},
            "crd_75": {CIFAR[2]: Number(70.98)},
            "sskd_75": {CIFAR[2]: Number(70.47)},
            "student_75": {CIFAR[2]: Number(73.26)},
            "student": {CIFAR[2]: Number(73.73, 0.10)},
        },
        note="a method without a percentage uses all images",
    ),
    "ablation": Table(
        "Ablation: the gain by each term and each branch (c1, c2, c3), with a jointly trained teacher",
        {
            "baseline": _row(ABLATED, 73.57, 71.74),
            "ablation_branch1": _row(ABLATED, 74.43, 72.96),
            "ablation_branch2": _row(ABLATED, 75.90, 76.72),
            "ablation_branch3": _row(ABLATED, 76.53, 77.97),
            "ablation_kl_aux": _row(ABLATED, 77.11, 78.87),
            "ablation_upright": _row(ABLATED, 78.23, 79.06),
            "student": _row(ABLATED, 78.67, 80.11),
            "ablation_joint": _row(ABLATED, 78.17, 79.91),
        },
    ),
    "labels": Table(
        "Joint labels against rotation as augmentation",
        {
            "baseline": _row(PLAIN, 78.01, 63.69),
            "rotated": _row(PLAIN, 77.75, 62.66),
            "joint": _row(PLAIN, 79.76, 65.81),
        },
    ),
    "probe": Table(
        "Linear probe of the student",
        {
            "baseline": _row(PROBED, 67.76, 34.69),
            "kd": _row(PROBED, 67.90, 34.15),
            "crd": _row(PROBED, 70.09, 38.17),
            "sskd": _row(PROBED, 71.03, 39.07),
            "student": _row(PROBED, 74.66, 42.57),
        },
        "a new last layer on a backbone that the method trained; the paper's was trained on CIFAR-100, and the paper "
        "does not name HSAKD's teacher",
    ),
    "voc": Table(
        "Pascal VOC detection, mAP with the student as backbone",
        {
            "baseline": {VOC: Number(76.18)},
            "kd": {VOC: Number(77.06)},
            "crd": {VOC: Number(77.36)},
            "sskd": {VOC: Number(77.60)},
            "student": {VOC: Number(78.45)},
        },
        "detection is not part of this package; the paper's code for it was not published",
    ),
}  # fmt: skip

# The paper's settings by dataset and schedule; keys are those of `runs.config.flatten`. BatchNorm groups are not among
# them: on ImageNet the paper's follow from its eight GPUs.
_ALL: dict[str, Any] = {
    "network.dtype": "float32",
    "data.validation": 0.0,
    "data.flip": True,
    "training.optimizer": "sgd",
    "training.copy_branches": False,
    "training.accumulate": 1,
    "training.lr_batch": None,
    "training.schedule": "multi_step",
    "training.gamma": 0.1,
    "training.warmup": 0,
    "training.momentum": 0.9,
}
_CIFAR = {
    **_ALL,
    "data.image_size": None,
    "data.mean": [0.5071, 0.4867, 0.4408],
    "data.std": [0.2675, 0.2565, 0.2761],
    "data.crop": "pad",
    "data.pad": 4,
    "training.epochs": 240,
    "training.milestones": [150, 180, 210],
    "training.batch": 64,
    "training.lr": 0.05,
    "training.nesterov": True,
    "training.weight_decay": 5e-4,
}
_FROZEN = {**_CIFAR, "training.epochs": 100, "training.milestones": [30, 60, 90]}
# From SSKD's code, student.py.
_HEAD = {**_CIFAR, "training.epochs": 60, "training.milestones": [30, 45]}
_IMAGENET = {
    **_ALL,
    "data.image_size": 224,
    "data.resize": 256,
    "data.interpolation": "bilinear",
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "data.crop": "resized",
    "training.epochs": 100,
    "training.milestones": [30, 60, 90],
    "training.batch": 256,
    "training.lr": 0.1,
    "training.nesterov": False,
    "training.weight_decay": 1e-4,
}
_STL = {
    **_ALL,
    "data.image_size": 32,
    "data.resize": None,
    "data.interpolation": "bilinear",
    "data.mean": [0.5],
    "data.std": [0.5],
    "data.crop": "resized",
    "training.epochs": 100,
    "training.milestones": [30, 60, 90],
    "training.batch": 64,
    "training.lr": 0.1,
    "training.nesterov": True,
    "training.weight_decay": 0.0,
}
# 'full' trains a network, 'frozen' the branches on a frozen backbone, 'head' SSKD's head, 'probe' a new last layer.
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar100", "full"): _CIFAR,
    ("cifar100", "frozen"): _FROZEN,
    ("cifar100", "head"): _HEAD,
    ("imagenet2012", "full"): _IMAGENET,
    ("imagenet2012", "frozen"): _IMAGENET,
    ("stl10", "probe"): _STL,
    ("tiny_imagenet", "probe"): {**_STL, "data.mean": _IMAGENET["data.mean"], "data.std": _IMAGENET["data.std"]},
}
# Learning rate of the networks `make_config.SLOW` on CIFAR-100.
SLOW_LR = 0.01
