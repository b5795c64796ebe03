"""Settings by pair of networks, against those in the configs of the methods' authors."""

import runpy

import pytest
import reference
from conftest import ROOT

from hsakd_jax.distillation.methods import default_options
from hsakd_jax.experiments.published import ANY_PAIR, SETTINGS
from hsakd_jax.experiments.recipes import published_terms
from hsakd_jax.models import NETWORKS

PUBLISHED = reference.read("methods.json")["published"]
THEIRS = {"vgg13_bn": "vgg13", "vgg8_bn": "vgg8", "mobilenetV2": "MobileNetV2"}
# Their names apart from CIFAR-100's, since ResNet50 is two networks.
ON_IMAGENET = {f"resnet{depth}_imagenet": f"ResNet{depth}" for depth in (18, 34, 50)}
ON_IMAGENET |= {"mobilenetv1_100": "MobileNetV1"}
THEIRS |= ON_IMAGENET
DATASETS = {"cifar100": "cifar100", "imagenet2012": "imagenet"}
# What the authors' configs call the values, by recipe; where two names are listed, CIFAR-100's and ImageNet's.
CE = {"task.weight": ("ce", "ce_weight", "loss.ce_weight")}
KEYS = {
    "kd": {"kl.weight": ("kl", "loss.kd_weight"), "kl.temperature": ("temperature",)},
    "fitnet": {"fitnet.weight": ("fitnet",), "fitnet.stage": ("hint_layer",)},
    "at": {"at.weight": ("at", "loss.feat_weight")},
    "vid": {"vid.weight": ("vid",)},
    "rkd": {"rkd.weight": ("rkd",)},
    "sp": {"sp.weight": ("sp",)},
    "cc": {"cc.weight": ("cc",)},
    "pkt": {"pkt.weight": ("pkt",)},
    "crd": {
        "crd.weight": ("crd", "loss.feat_weight"),
        "crd.negatives": ("negatives", "nce.k"),
        "crd.temperature": ("temperature", "nce.temperature"),
    },
    "sskd": {
        "kl.weight": ("kl",),
        "kl.temperature": ("kd_T",),
        "sskd_kl.weight": ("tf",),
        "sskd_kl.temperature": ("tf_T",),
        "sskd_kl.kept": ("ratio_tf",),
        "sskd_ss.weight": ("ss",),
        "sskd_ss.temperature": ("ss_T",),
        "sskd_ss.kept": ("ratio_ss",),
    },
    "dkd": {"dkd.alpha": ("alpha",), "dkd.beta": ("beta",), "dkd.temperature": ("t",), "dkd.warmup": ("warmup",)},
    "kd_ls": {"kl.weight": ("weight",), "kl.temperature": ("temperature",)},
    "dkd_ls": {"dkd.weight": ("weight",), "dkd.temperature": ("temperature",), "dkd.beta": ("beta",)},
    "rld": {
        "rld.alpha": ("alpha",),
        "rld.beta": ("beta",),
        "rld.temperature": ("t",),
        "rld.alpha_temperature": ("alpha_t",),
        "rld.warmup": ("warmup",),
    },
    "dist": {f"dist.{key}": (key,) for key in ("weight", "beta", "gamma", "temperature")},
    "ttm": {f"ttm.{key}": (key,) for key in ("weight", "gamma")},
    "wttm": {f"wttm.{key}": (key,) for key in ("weight", "gamma")},
    "nkd": {f"nkd.{key}": (key,) for key in ("weight", "gamma", "temperature")},
    "reviewkd": {
        "reviewkd.weight": ("weight",),
        "reviewkd.warmup": ("warmup",),
        "reviewkd.max_channels": ("mid_channels",),
    },
    "simkd": {"simkd.weight": ("simkd",), "kl.weight": ("kl",)},
    "mlld": {
        "strong_task.weight": ("loss.ce_weight",),
        **{f"mlld_{term}.weight": ("loss.kd_weight",) for term in ("kl", "images", "classes")},
        **{f"mlld_{term}.temperature": ("temperature",) for term in ("kl", "images", "classes")},
    },
    "mlld_ls": {
        **{f"mlld_{term}.weight": ("weight",) for term in ("kl", "images", "classes")},
        **{f"mlld_{term}.temperature": ("temperature",) for term in ("kl", "images", "classes")},
    },
    "crld": {
        "strong_task.weight": ("ce",),
        "crld_within.weight": ("within",),
        "crld_within.temperature": ("temperature",),
        "crld_within.threshold": ("tau_weak",),
        "crld_across.weight": ("cross",),
        "crld_across.temperature": ("temperature",),
        "crld_across.threshold": ("tau_strong",),
    },
    "wkd_l": {
        "wkd_l.weight": ("loss.wkd_logit_weight",),
        "wkd_l.temperature": ("temperature",),
        "wkd_l.sharpness": ("cost_matrix_sharpen",),
        "wkd_l.decay": ("loss.cosine_decay_epoch",),
    },
    "wkd_f": {
        "wkd_f.weight": ("loss.wkd_feat_weight",),
        "wkd_f.ratio": ("mean_cov_ratio",),
        "wkd_f.grid": ("spatial_grid",),
        "wkd_f.projector": ("projector",),
        "wkd_f.decay": ("loss.cosine_decay_epoch",),
    },
}
# Values of our form of a term, which the authors' configs do not spell as values of their own.
IMPLIED = {
    "kl.weight": 0.0,  # the method takes the place of KD
    "kl.standardise": True,
    "dkd.standardise": True,
    "dkd.weight": 1.0,
    "dkd.alpha": 1.0,
    "dkd.warmup": 20,  # the note of DKD with standardised logits
    "rld.weight": 1.0,
    "crd.weight": 0.8,  # of WTTM, in the name of its pair
    "sskd_head.weight": 1.0,
    "wkd_target.weight": 1.0,
    "reviewkd.preactivation": True,  # the networks of the authors' ImageNet code
    "wkd_l.images": {"cifar100": 500, "imagenet2012": 732},  # all, or those of the smallest class
    **dict.fromkeys(("fitnet.maps", "at.maps", "vid.maps"), "hints"),  # after VGG's blocks, in the benchmark's networks
    "task.weight": {"kd_ls": 0.1, "mlld_ls": 0.1},  # notes
    "strong_task.weight": 0.1,  # of MLLD with standardised logits, a note
    "mlld_kl.standardise": True,
}
OTHERS = {("sp", "imagenet2012"), ("cc", "imagenet2012")}  # from a table of CRD's paper


def theirs(setting):
    """The values of the authors' config for a line: those of all pairs, then those of its pair."""
    section = PUBLISHED[{"sskd_teacher": "sskd"}.get(setting.recipe, setting.recipe)][DATASETS[setting.dataset]]
    pair = "/".join(THEIRS.get(name, name) for name in setting.pair.split("/"))
    found = {**section.get("all", {}), **section.get("all pairs", {})}
    named = [values for names, values in section.items() if pair in names.replace(",", "").split(" ")]
    assert named or setting.pair == ANY_PAIR, setting
    for values in named:
        found |= values
    return found


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.recipe}-{s.dataset}-{s.pair}")
def test_every_line_is_that_of_the_authors_code(setting):
    if (setting.recipe, setting.dataset) in OTHERS:
        assert setting.values == {"task.weight": 1.0, "kl.weight": 0.0}
        assert PUBLISHED[setting.recipe]["imagenet"] == "not published"
        return
    values, compared = theirs(setting), 0
    for key, value in setting.values.items():
        names = [name for name in {**CE, **KEYS.get(setting.recipe, {})}.get(key, ()) if name in values]
        if names:
            expected = {"conv1x1": "regressor"}.get(values[names[0]], values[names[0]])
            compared += 1
        else:
            expected = IMPLIED.get(key)
            if isinstance(expected, dict):
                expected = expected.get(setting.recipe, expected.get(setting.dataset, 1.0))
            if key == "wkd_l.cost":
                assert values["cost_matrix"] == "cka"
                expected = "cka_logits" if "logit" in values["cost_matrix_path"] else "cka_map"
            expected = 8.0 if (setting.recipe, key) == ("dkd_ls", "dkd.beta") else expected  # its note
        assert value == expected, key
    assert compared or setting.recipe == "sskd_teacher"


def test_every_published_pair_has_a_line():
    """Of the networks that are here."""
    ours = {value: key for key, value in THEIRS.items() if key not in ON_IMAGENET}
    for recipe in ("dkd", "kd_ls", "dkd_ls", "rld", "ttm", "wttm", "reviewkd", "mlld_ls", "wkd_l", "wkd_f"):
        pairs = (name.split(",")[0].split("/") for name in PUBLISHED[recipe]["cifar100"] if "/" in name)
        expected = {"/".join(ours.get(name, name) for name in pair) for pair in pairs}
        expected = {pair for pair in expected if set(pair.split("/")) <= set(NETWORKS)}
        found = {line.pair for line in SETTINGS if (line.recipe, line.dataset) == (recipe, "cifar100")}
        assert found == expected, recipe


def test_every_published_pair_of_imagenet_has_a_line():
    """MLLD has a MobileNetV2 of its own, and NKD two DeiTs."""
    ours = {value: key for key, value in ON_IMAGENET.items()}
    for recipe in {line.recipe for line in SETTINGS if line.dataset == "imagenet2012"} - {"sp", "cc"}:
        pairs = (pair for names in PUBLISHED[recipe]["imagenet"] for pair in names.split(", ") if "/" in pair)
        expected = {"/".join(ours.get(name, name) for name in pair.split("/")) for pair in pairs}
        found = {line.pair for line in SETTINGS if (line.recipe, line.dataset) == (recipe, "imagenet2012")}
        assert found == {pair for pair in expected if set(pair.split("/")) <= set(NETWORKS)}, recipe


def test_the_config_of_imagenets_second_pair():
    """MobileNets for ImageNet keep the config's rate; on CIFAR-100, the MobileNetV2 there has a fifth."""
    imagenet, cifar100 = (runpy.run_path(str(ROOT / f"configs/{n}.py"))["get_config"] for n in ("imagenet", "cifar100"))
    config = imagenet("wkd_l/resnet50_imagenet/mobilenetv1_100")
    assert (config.teacher.arch, config.student.arch) == ("resnet50_imagenet", "mobilenetv1_100")
    assert config.objective.wkd_l.wkd_l.sharpness == 2.0
    assert (config.teacher.lr, config.student.lr) == (0.1, 0.1)
    for name in ("mobilenet_v2", "mobilenet_v3_small"):
        assert imagenet(f"baseline/{name}").student.lr == 0.1
    assert cifar100("baseline/mobilenetV2").student.lr == 0.01


def test_a_recipe_has_the_values_of_its_networks():
    terms = published_terms("dkd", "cifar100", "resnet56", "resnet20")
    assert terms["dkd"] == {"weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 4.0, "warmup": 20}
    imagenet = published_terms("kd", "imagenet2012", "resnet34_imagenet", "resnet18_imagenet")
    assert imagenet == {"task": {"weight": 0.5}, "kl": {"weight": 0.5, "temperature": 1.0}}
    assert published_terms("kd_25", "cifar100", "resnet56", "resnet20")["kl"] == {"weight": 0.9, "temperature": 4.0}


def test_defaults_of_sinkhorn():
    for dataset in ("cifar100", "imagenet"):
        every = PUBLISHED["wkd_l"][dataset]["all"]
        expected = {"regularisation": every["sinkhorn.lambda"], "iterations": every["sinkhorn.iter"]}
        assert default_options("wkd_l").items() >= expected.items()


def test_both_mobilenets_have_the_same_values():
    for name in ("mobilenetV2", "mobilenetV2_crd"):
        assert published_terms("dkd", "cifar100", "vgg13_bn", name)["dkd"]["beta"] == 6.0
    assert published_terms("dkd", "cifar10", "vgg13_bn", "mobilenetV2")["dkd"]["beta"] == 8.0  # the recipe's own
