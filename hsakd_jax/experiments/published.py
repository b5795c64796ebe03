"""Settings of methods by dataset and pair of networks, as their authors' code has them; each line has its source."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Recipes of our own, without published settings.
OURS = ("student_ls", "student_dist", "student_strong")
ANY_PAIR, IMAGENET_PAIR = "*", "resnet34_imagenet/resnet18_imagenet"
FIRST_IMAGENET_CLASS = "n01440764"
# The second pair of ImageNet. timm's MobileNetV1 has ReLU6, that of most of these authors ReLU.
MOBILENET_PAIR = "resnet50_imagenet/mobilenetv1_100"


class Setting(NamedTuple):
    """Values of a recipe's terms.

    Attributes:
      recipe: a key of `recipes.RECIPES`.
      dataset: `data.name` of the config.
      pair: 'TEACHER/STUDENT', keys of `models.NETWORKS`, or `ANY_PAIR`.
      values: by 'TERM.OPTION'.
      source: the repository and the file.
    """

    recipe: str
    dataset: str
    pair: str
    values: Mapping[str, Any]
    source: str


def _values(task: float = 1.0, **values: Any) -> dict[str, Any]:
    """Values by 'TERM.OPTION' from TERM__OPTION, and the weight of the cross-entropy."""
    return {"task.weight": task, **{key.replace("__", "."): value for key, value in values.items()}}


def _benchmark(recipe: str, **values: Any) -> Setting:
    """CRD's benchmark has the same values for all pairs."""
    source = "HobbitLong/RepDistiller scripts/run_cifar_distill.sh, train_student.py"
    return Setting(recipe, "cifar100", ANY_PAIR, _values(**values), source)


def _imagenet(recipe: str, source: str, pair: str = IMAGENET_PAIR, **values: Any) -> Setting:
    return Setting(recipe, "imagenet2012", pair, _values(**values), source)


def _mobilenet(recipe: str, source: str, **values: Any) -> Setting:
    return _imagenet(recipe, source, MOBILENET_PAIR, **values)


def _dkd(pair: str, beta: float, file: str) -> Setting:
    values = _values(dkd__weight=1.0, dkd__alpha=1.0, dkd__beta=beta, dkd__temperature=4.0, dkd__warmup=20)
    source = f"megvii-research/mdistiller configs/cifar100/dkd/{file}"
    return Setting("dkd", "cifar100", pair, {**values, **NO_KD}, source)


def _kd_ls(pair: str, temperature: float, weight: float) -> Setting:
    values = _values(0.1, kl__temperature=temperature, kl__weight=weight, kl__standardise=True)
    return Setting("kd_ls", "cifar100", pair, values, "sunshangquan/logit-standardization-KD logs/KD")


def _dkd_ls(pair: str, temperature: float, weight: float, beta: float) -> Setting:
    values = _values(
        dkd__temperature=temperature, dkd__weight=weight, dkd__alpha=1.0, dkd__beta=beta, dkd__warmup=20,
        dkd__standardise=True,
    )  # fmt: skip
    return Setting("dkd_ls", "cifar100", pair, {**values, **NO_KD}, "sunshangquan/logit-standardization-KD logs/DKD")


def _rld(pair: str, file: str) -> Setting:
    values = _values(
        rld__weight=1.0, rld__alpha=1.0, rld__beta=8.0, rld__temperature=4.0, rld__alpha_temperature=1.0, rld__warmup=20
    )
    return Setting("rld", "cifar100", pair, {**values, **NO_KD}, f"zju-SWJ/RLD configs/cifar100/rld/{file}.yaml")


def _wkd_f(pair: str, weight: float, ratio: float, grid: int, file: str) -> Setting:
    values = _values(wkd_f__weight=weight, wkd_f__ratio=ratio, wkd_f__grid=grid, wkd_f__decay=150)
    return Setting("wkd_f", "cifar100", pair, {**values, **NO_KD}, f"JiamingLv/WKD configs/cifar100/wkd_f/{file}")


def _wkd_l(pair: str, weight: float, temperature: float, file: str) -> Setting:
    values = _values(
        wkd_target__weight=1.0,
        wkd_l__weight=weight,
        wkd_l__temperature=temperature,
        wkd_l__cost="cka_map",
        wkd_l__images=500,
        wkd_l__sharpness=1.0,
        wkd_l__decay=150,
    )
    return Setting("wkd_l", "cifar100", pair, {**values, **NO_KD}, f"JiamingLv/WKD configs/cifar100/wkd_l/{file}")


def _mlld(task: float, weight: float, temperature: float) -> dict[str, Any]:
    """MLLD's three terms have one weight and one temperature."""
    terms = ("mlld_kl", "mlld_images", "mlld_classes")
    values = {f"{term}.weight": weight for term in terms} | {f"{term}.temperature": temperature for term in terms}
    return {"task.weight": task, "strong_task.weight": task, **values, **NO_KD}


def _mlld_ls(pair: str, weight: float) -> Setting:
    values = {**_mlld(0.1, weight, 2.0), "mlld_kl.standardise": True}
    return Setting("mlld_ls", "cifar100", pair, values, "sunshangquan/logit-standardization-KD logs/MLKD")


def _reviewkd(pair: str, weight: float) -> Setting:
    values = _values(reviewkd__weight=weight, reviewkd__warmup=20)
    return Setting(
        "reviewkd", "cifar100", pair, {**values, **NO_KD}, "dvlab-research/ReviewKD CIFAR-100/script/reviewKD.sh"
    )


# Of methods that take the place of KD.
NO_KD = {"kl.weight": 0.0}
CRLD: dict[str, Any] = {
    "crld_within__weight": 2.0,
    "crld_within__threshold": 0.9,
    "crld_across__weight": 0.5,
    "crld_across__threshold": 0.2,
    "kl__weight": 0.0,
}
CRD: dict[str, Any] = {"crd__weight": 0.8, "crd__negatives": 16384, "crd__temperature": 0.07}

# A value without a line here is not published for its pair: `recipes.RECIPES` has our choice.
SETTINGS = (
    _benchmark("kd", task=0.1, kl__weight=0.9, kl__temperature=4.0),
    # HSAKD's paper combines these with KD and does not publish the weight of KD.
    _benchmark("fitnet", fitnet__weight=100.0, fitnet__stage=2, fitnet__maps="hints"),
    _benchmark("at", at__weight=1000.0, at__maps="hints"),
    _benchmark("vid", vid__weight=1.0, vid__maps="hints"),
    _benchmark("rkd", rkd__weight=1.0),
    _benchmark("sp", sp__weight=3000.0),
    _benchmark("cc", cc__weight=0.02),
    _benchmark("pkt", pkt__weight=30000.0),
    _benchmark("crd", **CRD),
    Setting(
        "sskd",
        "cifar100",
        ANY_PAIR,
        _values(
            0.1,
            kl__weight=0.9,
            kl__temperature=4.0,
            sskd_kl__weight=2.7,
            sskd_kl__temperature=4.0,
            sskd_kl__kept=1.0,
            sskd_ss__weight=10.0,
            sskd_ss__temperature=0.5,
            sskd_ss__kept=0.75,
        ),
        "xuguodong03/SSKD student.py, command.sh",
    ),
    Setting("sskd_teacher", "cifar100", ANY_PAIR, {"sskd_head.weight": 1.0}, "xuguodong03/SSKD student.py"),
    _imagenet(
        "kd",
        "megvii-research/mdistiller configs/imagenet/r34_r18/kd.yaml",
        task=0.5,
        kl__weight=0.5,
        kl__temperature=1.0,
    ),
    _imagenet(
        "at",
        "megvii-research/mdistiller configs/imagenet/r34_r18/at.yaml",
        at__weight=1000.0,
        at__maps="hints",
        kl__weight=0.0,
    ),
    _imagenet("crd", "megvii-research/mdistiller configs/imagenet/r34_r18/crd.yaml", **CRD),
    # CRD's paper has these two without KD, and does not publish their weights.
    _imagenet("sp", "Tian et al. 2020 (arXiv 1910.10699), the table of ImageNet", kl__weight=0.0),
    _imagenet("cc", "Tian et al. 2020 (arXiv 1910.10699), the table of ImageNet", kl__weight=0.0),
    _dkd("resnet56/resnet20", 2.0, "res56_res20.yaml"),
    _dkd("resnet110/resnet32", 2.0, "res110_res32.yaml"),
    _dkd("resnet32x4/resnet8x4", 8.0, "res32x4_res8x4.yaml"),
    _dkd("resnet32x4/ShuffleV1", 8.0, "res32x4_shuv1.yaml"),
    _dkd("resnet32x4/ShuffleV2", 8.0, "res32x4_shuv2.yaml"),
    _dkd("ResNet50/mobilenetV2", 8.0, "res50_mv2.yaml"),
    _dkd("wrn_40_2/ShuffleV1", 8.0, "wrn40_2_shuv1.yaml"),
    _dkd("wrn_40_2/wrn_16_2", 6.0, "wrn40_2_wrn_16_2.yaml"),
    _dkd("wrn_40_2/wrn_40_1", 6.0, "wrn40_2_wrn_40_1.yaml"),
    _dkd("vgg13_bn/vgg8_bn", 6.0, "vgg13_vgg8.yaml"),
    _dkd("vgg13_bn/mobilenetV2", 6.0, "vgg13_mv2.yaml"),
    _imagenet(
        "dkd",
        "megvii-research/mdistiller configs/imagenet/r34_r18/dkd.yaml",
        dkd__weight=1.0,
        dkd__alpha=1.0,
        dkd__beta=0.5,
        dkd__temperature=1.0,
        dkd__warmup=1,
        kl__weight=0.0,
    ),
    _kd_ls("ResNet50/mobilenetV2", 3.0, 1.0),
    _kd_ls("resnet110/resnet20", 4.0, 12.0),
    _kd_ls("resnet110/resnet32", 2.0, 9.0),
    _kd_ls("resnet32x4/ShuffleV2", 2.0, 9.0),
    _kd_ls("resnet32x4/resnet8x4", 2.0, 9.0),
    _kd_ls("resnet32x4/wrn_16_2", 3.0, 9.0),
    _kd_ls("resnet32x4/wrn_40_2", 3.0, 9.0),
    _kd_ls("resnet56/resnet20", 2.0, 9.0),
    _kd_ls("vgg13_bn/mobilenetV2", 3.0, 9.0),
    _kd_ls("vgg13_bn/vgg8_bn", 3.0, 9.0),
    _kd_ls("wrn_40_2/mobilenetV2", 3.0, 9.0),
    _kd_ls("wrn_40_2/resnet8x4", 2.0, 9.0),
    _kd_ls("wrn_40_2/wrn_16_2", 2.0, 9.0),
    _kd_ls("wrn_40_2/wrn_40_1", 2.0, 9.0),
    _imagenet(
        "kd_ls",
        "sunshangquan/logit-standardization-KD configs/imagenet/r34_r18/kd.yaml",
        kl__weight=9.0,
        kl__temperature=2.0,
        kl__standardise=True,
    ),
    _dkd_ls("ResNet50/mobilenetV2", 2.0, 15.0, 2.0),
    _dkd_ls("resnet110/resnet20", 2.0, 15.0, 2.0),
    _dkd_ls("resnet110/resnet32", 2.0, 15.0, 2.0),
    _dkd_ls("resnet32x4/ShuffleV2", 2.0, 9.0, 8.0),
    _dkd_ls("resnet32x4/resnet8x4", 2.0, 9.0, 8.0),
    _dkd_ls("resnet32x4/wrn_16_2", 2.0, 9.0, 2.0),
    _dkd_ls("resnet32x4/wrn_40_2", 2.0, 9.0, 8.0),
    _dkd_ls("resnet56/resnet20", 3.0, 18.0, 2.0),
    _dkd_ls("vgg13_bn/mobilenetV2", 3.0, 9.0, 2.0),
    _dkd_ls("vgg13_bn/vgg8_bn", 2.0, 15.0, 2.0),
    _dkd_ls("wrn_40_2/mobilenetV2", 2.0, 15.0, 2.0),
    _dkd_ls("wrn_40_2/resnet8x4", 2.0, 18.0, 2.0),
    _dkd_ls("wrn_40_2/wrn_16_2", 2.0, 12.0, 2.0),
    _dkd_ls("wrn_40_2/wrn_40_1", 2.0, 12.0, 2.0),
    # RLD's configs by pair have the defaults of its code. The paper's values by pair are not in the repository.
    _rld("ResNet50/mobilenetV2", "ResNet50_MobileNetV2"),
    _rld("resnet110/resnet20", "resnet110_resnet20"),
    _rld("resnet110/resnet32", "resnet110_resnet32"),
    _rld("resnet32x4/ShuffleV2", "resnet32x4_ShuffleV2"),
    _rld("resnet32x4/resnet8x4", "resnet32x4_resnet8x4"),
    _rld("resnet32x4/wrn_16_2", "resnet32x4_wrn_16_2"),
    _rld("resnet32x4/wrn_40_2", "resnet32x4_wrn_40_2"),
    _rld("resnet56/resnet20", "resnet56_resnet20"),
    _rld("vgg13_bn/mobilenetV2", "vgg13_MobileNetV2"),
    _rld("vgg13_bn/vgg8_bn", "vgg13_vgg8"),
    _rld("wrn_40_2/mobilenetV2", "wrn_40_2_MobileNetV2"),
    _rld("wrn_40_2/resnet8x4", "wrn_40_2_resnet8x4"),
    _rld("wrn_40_2/wrn_16_2", "wrn_40_2_wrn_16_2"),
    _rld("wrn_40_2/wrn_40_1", "wrn_40_2_wrn_40_1"),
    _imagenet(
        "rld",
        "zju-SWJ/RLD configs/imagenet/r34_r18/rld.yaml",
        rld__weight=1.0,
        rld__alpha=1.0,
        rld__beta=0.5,
        rld__temperature=1.0,
        rld__alpha_temperature=1.0,
        rld__warmup=1,
        kl__weight=0.0,
    ),
    Setting(
        "dist",
        "cifar100",
        ANY_PAIR,
        _values(dist__weight=2.0, dist__beta=1.0, dist__gamma=1.0, dist__temperature=4.0, kl__weight=0.0),
        "hunto/image_classification_sota configs/strategies/distill/dist_cifar.yaml",
    ),
    _imagenet(
        "dist",
        "hunto/image_classification_sota configs/strategies/distill/resnet_dist.yaml",
        dist__weight=2.0,
        dist__beta=1.0,
        dist__gamma=1.0,
        dist__temperature=1.0,
        kl__weight=0.0,
    ),
    # The papers' values for other pairs are not in the repository.
    Setting(
        "ttm",
        "cifar100",
        "vgg13_bn/vgg8_bn",
        _values(ttm__weight=45.0, ttm__gamma=0.1, kl__weight=0.0),
        "zkxufo/TTM README.md",
    ),
    Setting(
        "wttm",
        "cifar100",
        "vgg13_bn/vgg8_bn",
        _values(wttm__weight=4.0, wttm__gamma=0.2, crd__weight=0.8, kl__weight=0.0),
        "zkxufo/TTM README.md",
    ),
    _imagenet(
        "nkd",
        "yzd-v/cls_KD configs/distillers/imagenet/res34_distill_res18_img.py",
        nkd__weight=1.0,
        nkd__gamma=1.5,
        nkd__temperature=1.0,
        kl__weight=0.0,
    ),
    _reviewkd("wrn_40_2/wrn_16_2", 5.0),
    _reviewkd("wrn_40_2/wrn_40_1", 5.0),
    _reviewkd("wrn_40_2/ShuffleV1", 5.0),
    _reviewkd("resnet32x4/resnet8x4", 5.0),
    _reviewkd("resnet32x4/ShuffleV1", 5.0),
    _reviewkd("resnet32x4/ShuffleV2", 8.0),
    _reviewkd("resnet56/resnet20", 0.6),
    _reviewkd("resnet110/resnet32", 1.0),
    _imagenet(
        "reviewkd",
        "dvlab-research/ReviewKD ImageNet/README.md, ImageNet/models/reviewkd.py",
        reviewkd__weight=1.0,
        reviewkd__max_channels=512,
        reviewkd__preactivation=True,
        reviewkd__warmup=0,
        kl__weight=0.0,
    ),
    Setting(
        "simkd",
        "cifar100",
        ANY_PAIR,
        _values(0.0, simkd__weight=1.0, kl__weight=0.0),
        "DefangChen/SimKD scripts/run_distill.sh",
    ),
    Setting(
        "mlld",
        "cifar100",
        ANY_PAIR,
        _mlld(0.1, 0.9, 4.0),
        "Jin-Ying/Multi-Level-Logit-Distillation configs/cifar100/ours",
    ),
    Setting(
        "mlld",
        "imagenet2012",
        IMAGENET_PAIR,
        _mlld(0.5, 0.5, 1.0),
        "Jin-Ying/Multi-Level-Logit-Distillation configs/imagenet/r34_r18/kd_ours.yaml",
    ),
    _mlld_ls("resnet110/resnet20", 9.0),
    _mlld_ls("resnet110/resnet32", 9.0),
    _mlld_ls("ResNet50/mobilenetV2", 9.0),
    _mlld_ls("resnet32x4/ShuffleV2", 6.0),
    _mlld_ls("resnet32x4/resnet8x4", 9.0),
    _mlld_ls("resnet32x4/wrn_16_2", 9.0),
    _mlld_ls("resnet32x4/wrn_40_2", 9.0),
    _mlld_ls("vgg13_bn/mobilenetV2", 6.0),
    _mlld_ls("vgg13_bn/vgg8_bn", 6.0),
    _mlld_ls("wrn_40_2/resnet8x4", 9.0),
    _mlld_ls("wrn_40_2/wrn_16_2", 9.0),
    _mlld_ls("wrn_40_2/wrn_40_1", 9.0),
    Setting(
        "crld",
        "cifar100",
        ANY_PAIR,
        _values(strong_task__weight=1.0, **CRLD, crld_within__temperature=4.0, crld_across__temperature=4.0),
        "scx-822/CRLD-main configs/cifar100/crld, mdistiller/engine/cfg.py",
    ),
    _imagenet(
        "crld",
        "scx-822/CRLD-main configs/imagenet/r34_r18/crld.yaml",
        task=2.0,
        strong_task__weight=2.0,
        **CRLD,
        crld_within__temperature=1.0,
        crld_across__temperature=1.0,
    ),
    _wkd_l("resnet32x4/resnet8x4", 600.0, 8.0, "res32x4_res8x4.yaml"),
    _wkd_l("wrn_40_2/ShuffleV1", 200.0, 6.0, "wrn40_2_shuv1.yaml"),
    # 732 images are all of the smallest class.
    _imagenet(
        "wkd_l",
        "JiamingLv/WKD configs/imagenet/r34_r18/wkd_l.yaml",
        wkd_target__weight=1.0,
        wkd_l__weight=30.0,
        wkd_l__temperature=2.0,
        wkd_l__cost="cka_logits",
        wkd_l__images=732,
        wkd_l__sharpness=1.0,
        wkd_l__decay=0,
        kl__weight=0.0,
    ),
    _wkd_f("resnet32x4/resnet8x4", 0.08, 4.0, 1, "res32x4_res8x4.yaml"),
    _wkd_f("wrn_40_2/ShuffleV1", 0.3, 3.0, 4, "wrn40_2_shuv1.yaml"),
    _imagenet(
        "wkd_f",
        "JiamingLv/WKD configs/imagenet/r34_r18/wkd_f.yaml",
        wkd_f__weight=0.02,
        wkd_f__ratio=2.0,
        wkd_f__grid=4,
        wkd_f__projector="bottleneck",
        wkd_f__decay=0,
        kl__weight=0.0,
    ),
    _mobilenet(
        "kd",
        "megvii-research/mdistiller configs/imagenet/r50_mv1/kd.yaml",
        task=0.5,
        kl__weight=0.5,
        kl__temperature=1.0,
    ),
    _mobilenet(
        "at",
        "megvii-research/mdistiller configs/imagenet/r50_mv1/at.yaml",
        at__weight=1000.0,
        at__maps="hints",
        kl__weight=0.0,
    ),
    _mobilenet("crd", "megvii-research/mdistiller configs/imagenet/r50_mv1/crd.yaml", **CRD),
    _mobilenet(
        "dkd",
        "megvii-research/mdistiller configs/imagenet/r50_mv1/dkd.yaml",
        dkd__weight=1.0,
        dkd__alpha=1.0,
        dkd__beta=2.0,
        dkd__temperature=1.0,
        dkd__warmup=1,
        kl__weight=0.0,
    ),
    _mobilenet(
        "rld",
        "zju-SWJ/RLD configs/imagenet/r50_mv1/rld.yaml",
        rld__weight=1.0,
        rld__alpha=1.0,
        rld__beta=2.0,
        rld__temperature=1.0,
        rld__alpha_temperature=1.0,
        rld__warmup=1,
        kl__weight=0.0,
    ),
    _mobilenet(
        "dist",
        "hunto/image_classification_sota configs/strategies/distill/resnet_dist.yaml",
        dist__weight=2.0,
        dist__beta=1.0,
        dist__gamma=1.0,
        dist__temperature=1.0,
        kl__weight=0.0,
    ),
    # Its gradients are clipped to a norm of 5, which is no setting here.
    _mobilenet(
        "nkd",
        "yzd-v/cls_KD configs/distillers/imagenet/res50_distill_mv1_img.py",
        nkd__weight=1.0,
        nkd__gamma=1.5,
        nkd__temperature=1.0,
        kl__weight=0.0,
    ),
    _mobilenet(
        "reviewkd",
        "dvlab-research/ReviewKD ImageNet/README.md, ImageNet/models/reviewkd.py",
        reviewkd__weight=8.0,
        reviewkd__max_channels=256,
        reviewkd__preactivation=True,
        reviewkd__warmup=0,
        kl__weight=0.0,
    ),
    _mobilenet(
        "crld",
        "scx-822/CRLD-main configs/imagenet/r50_mv1/crld.yaml",
        task=2.0,
        strong_task__weight=2.0,
        **CRLD,
        crld_within__temperature=1.0,
        crld_across__temperature=1.0,
    ),
    _mobilenet(
        "wkd_l",
        "JiamingLv/WKD configs/imagenet/r50_mv1/wkd_l.yaml",
        wkd_target__weight=1.0,
        wkd_l__weight=25.0,
        wkd_l__temperature=2.0,
        wkd_l__cost="cka_logits",
        wkd_l__images=732,
        wkd_l__sharpness=2.0,
        wkd_l__decay=0,
        kl__weight=0.0,
    ),
    _mobilenet(
        "wkd_f",
        "JiamingLv/WKD configs/imagenet/r50_mv1/wkd_f.yaml",
        wkd_f__weight=0.005,
        wkd_f__ratio=2.0,
        wkd_f__grid=4,
        wkd_f__projector="bottleneck",
        wkd_f__decay=30,
        kl__weight=0.0,
    ),
)


def dataset_of(name: str | None, classes: Sequence[str]) -> str:
    """The dataset as settings name it: 'imagenet2012' for a tree of ImageNet's images too; '' for none.

    Args:
      name: `data.name` of a run.
      classes: their names.
    """
    imagenet = name == "image_tree" and len(classes) == 1000 and classes[0] == FIRST_IMAGENET_CLASS
    return "imagenet2012" if imagenet else name or ""


def keys(recipe: str, dataset: str | None) -> list[str]:
    """The settings of a recipe, 'TERM.OPTION', that are published for some pair of networks.

    Args:
      recipe: a key of `recipes.RECIPES`.
      dataset: on which; None for any.
    """
    recipe = _of_all_images(recipe)
    lines = (s for s in SETTINGS if s.recipe == recipe and dataset in (None, s.dataset))
    return list(dict.fromkeys(key for line in lines for key in line.values))


def values(recipe: str, dataset: str, teacher: str, student: str) -> dict[str, Any]:
    """The published values of a recipe, by 'TERM.OPTION'; {} where there are none for these networks.

    Args:
      recipe: a key of `recipes.RECIPES`. A few-shot one has the values of all images.
      dataset: `data.name` of the config.
      teacher: a key of `models.NETWORKS`; any other name leaves only the values of all pairs.
      student: a key of `models.NETWORKS`. HSAKD's and CRD's MobileNetV2 have the same values.
    """
    recipe = _of_all_images(recipe)
    pair = f"{teacher}/{student}".removesuffix("_crd")
    lines = (s for s in SETTINGS if (s.recipe, s.dataset) == (recipe, dataset) and s.pair in (ANY_PAIR, pair))
    return {key: value for line in lines for key, value in line.values.items()}


def _of_all_images(recipe: str) -> str:
    """The recipe that a few-shot one trains on a fraction of the images."""
    return re.sub("_(25|50|75)$", "", recipe)
