"""Settings of methods by dataset and pair of networks, as their authors' code has them; each line has its source."""

from collections.abc import Mapping
from typing import NamedTuple


class Setting(NamedTuple):
    """Values of a recipe's terms.

    Attributes:
      recipe: a key of `recipes.RECIPES`.
      dataset: `data.name` of the config.
      pair: 'TEACHER/STUDENT', keys of `models.NETWORKS`.
      values: by 'TERM.OPTION'.
      source: the repository and the file.
    """

    recipe: str
    dataset: str
    pair: str
    values: Mapping[str, float]
    source: str


def _dkd(pair: str, beta: float, file: str) -> Setting:
    return Setting(
        "dkd", "cifar100", pair, {"dkd.beta": beta}, f"megvii-research/mdistiller configs/cifar100/dkd/{file}"
    )


def _kd_ls(pair: str, temperature: float, weight: float) -> Setting:
    values = {"kl.temperature": temperature, "kl.weight": weight}
    return Setting("kd_ls", "cifar100", pair, values, "sunshangquan/logit-standardization-KD logs/KD")


def _dkd_ls(pair: str, temperature: float, weight: float, beta: float) -> Setting:
    values = {"dkd.temperature": temperature, "dkd.weight": weight, "dkd.beta": beta}
    return Setting("dkd_ls", "cifar100", pair, values, "sunshangquan/logit-standardization-KD logs/DKD")


def _mlld_ls(pair: str, weight: float) -> Setting:
    values = {f"{term}.weight": weight for term in ("mlld_kl", "mlld_images", "mlld_classes")}
    return Setting("mlld_ls", "cifar100", pair, values, "sunshangquan/logit-standardization-KD logs/MLKD")


def _imagenet(recipe: str, source: str, **values: float) -> Setting:
    by_key = {key.replace("__", "."): value for key, value in values.items()}
    return Setting(recipe, "imagenet2012", "resnet34_imagenet/resnet18_imagenet", by_key, source)


# Where a recipe has no line for a pair, the values of `recipes.RECIPES` are its default.
SETTINGS = (
    _imagenet(
        "kd",
        "megvii-research/mdistiller configs/imagenet/r34_r18/kd.yaml",
        task__weight=0.5,
        kl__weight=0.5,
        kl__temperature=1.0,
    ),
    _dkd("resnet56/resnet20", 2.0, "res56_res20.yaml"),
    _dkd("resnet110/resnet32", 2.0, "res110_res32.yaml"),
    _dkd("wrn_40_2/wrn_16_2", 6.0, "wrn40_2_wrn_16_2.yaml"),
    _dkd("wrn_40_2/wrn_40_1", 6.0, "wrn40_2_wrn_40_1.yaml"),
    _dkd("vgg13_bn/vgg8_bn", 6.0, "vgg13_vgg8.yaml"),
    _dkd("vgg13_bn/mobilenetV2", 6.0, "vgg13_mv2.yaml"),
    _imagenet(
        "dkd",
        "megvii-research/mdistiller configs/imagenet/r34_r18/dkd.yaml",
        dkd__beta=0.5,
        dkd__temperature=1.0,
        dkd__warmup=1,
    ),
    # Pairs with temperature 2 and weight 9 are the default.
    _kd_ls("ResNet50/mobilenetV2", 3.0, 1.0),
    _kd_ls("resnet110/resnet20", 4.0, 12.0),
    _kd_ls("resnet32x4/wrn_16_2", 3.0, 9.0),
    _kd_ls("resnet32x4/wrn_40_2", 3.0, 9.0),
    _kd_ls("vgg13_bn/mobilenetV2", 3.0, 9.0),
    _kd_ls("vgg13_bn/vgg8_bn", 3.0, 9.0),
    _kd_ls("wrn_40_2/mobilenetV2", 3.0, 9.0),
    _imagenet("kd_ls", "sunshangquan/logit-standardization-KD configs/imagenet/r34_r18/kd.yaml", task__weight=1.0),
    # Pairs with temperature 2, weight 12 and beta 2 are the default.
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
    _imagenet(
        "rld",
        "zju-SWJ/RLD configs/imagenet/r34_r18/rld.yaml",
        rld__beta=0.5,
        rld__temperature=1.0,
        rld__warmup=1,
    ),
    _imagenet(
        "dist",
        "hunto/image_classification_sota configs/strategies/distill/resnet_dist.yaml",
        dist__temperature=1.0,
    ),
    _imagenet(
        "nkd",
        "yzd-v/cls_KD configs/distillers/imagenet/res34_distill_res18_img.py",
        nkd__gamma=1.5,
        nkd__temperature=1.0,
    ),
    _imagenet(
        "mlld",
        "Jin-Ying/Multi-Level-Logit-Distillation configs/imagenet/r34_r18/kd_ours.yaml",
        task__weight=0.5,
        strong_task__weight=0.5,
        mlld_kl__weight=0.5,
        mlld_kl__temperature=1.0,
        mlld_images__weight=0.5,
        mlld_images__temperature=1.0,
        mlld_classes__weight=0.5,
        mlld_classes__temperature=1.0,
    ),
    # Pairs with weight 9 are the default.
    _mlld_ls("resnet32x4/ShuffleV2", 6.0),
    _mlld_ls("vgg13_bn/mobilenetV2", 6.0),
    _mlld_ls("vgg13_bn/vgg8_bn", 6.0),
    _imagenet(
        "crld",
        "scx-822/CRLD-main configs/imagenet/r34_r18/crld.yaml",
        task__weight=2.0,
        strong_task__weight=2.0,
        crld_within__temperature=1.0,
        crld_across__temperature=1.0,
    ),
    Setting(
        "wkd_f",
        "cifar100",
        "wrn_40_2/ShuffleV1",
        {"wkd_f.weight": 0.3, "wkd_f.ratio": 3.0, "wkd_f.grid": 4},
        "JiamingLv/WKD configs/cifar100/wkd_f/wrn40_2_shuv1.yaml",
    ),
)


_BY_PAIR = {(setting.recipe, setting.dataset, setting.pair): setting.values for setting in SETTINGS}


def values(recipe: str, dataset: str, teacher: str, student: str) -> dict[str, float]:
    """The published values of a recipe, by 'TERM.OPTION'; {} where there are none for these networks.

    Args:
      recipe: a key of `recipes.RECIPES`.
      dataset: `data.name` of the config.
      teacher: a key of `models.NETWORKS`.
      student: a key of `models.NETWORKS`. HSAKD's and CRD's MobileNetV2 have the same values.
    """
    pair = f"{teacher}/{student}".removesuffix("_crd")
    return dict(_BY_PAIR.get((recipe, dataset, pair), {}))
