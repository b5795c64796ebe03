"""Settings by pair of networks, against those in the configs of the methods' authors."""

import pytest
import reference

from hsakd_jax.experiments.published import SETTINGS
from hsakd_jax.experiments.recipes import published_terms
from hsakd_jax.models import NETWORKS

PUBLISHED = reference.read("methods.json")["published"]
OURS = {"vgg13": "vgg13_bn", "vgg8": "vgg8_bn", "MobileNetV2": "mobilenetV2"}
OURS |= {"ResNet34": "resnet34_imagenet", "ResNet18": "resnet18_imagenet"}
IMAGENET = ("imagenet2012", "resnet34_imagenet", "resnet18_imagenet")


def by_pair(method):
    """The values of the authors' configs for CIFAR-100, by our names of teacher and student."""
    found = {}
    for pair, values in PUBLISHED[method]["cifar100"].items():
        teacher, _, student = (OURS.get(name, name) for name in pair.partition("/"))
        if teacher in NETWORKS and student in NETWORKS:
            found["cifar100", teacher, student] = values
    return found


@pytest.mark.parametrize("method", ["dkd", "kd_ls", "dkd_ls", "wkd_f"])
def test_values_by_pair(method):
    checked = by_pair(method)
    assert len(checked) > 1
    for on, theirs in checked.items():
        terms = published_terms(method, *on)
        if method == "kd_ls":
            found, expected = terms["kl"], {key: theirs[key] for key in ("weight", "temperature")}
        elif method == "wkd_f":
            found, every = terms["wkd_f"], PUBLISHED["wkd_f"]["cifar100"]["all"]
            expected = {"weight": theirs["loss.wkd_feat_weight"], "decay": every["loss.cosine_decay_epoch"]}
            expected |= {"ratio": theirs["mean_cov_ratio"], "grid": theirs["spatial_grid"]}
        else:
            found = terms["dkd"]
            expected = {"beta": 8.0} | {key: theirs[key] for key in ("beta", "weight", "temperature") if key in theirs}
        assert {key: found[key] for key in expected} == expected, on
    pairs = {f"{teacher}/{student}" for _, teacher, student in checked}
    assert {setting.pair for setting in SETTINGS if (setting.recipe, setting.dataset) == (method, "cifar100")} <= pairs


def of_two_views(recipe, *on):
    """Of both cross-entropies the weight that they share, and of the other terms those of each."""
    terms = published_terms(recipe, *on)
    assert terms["task"] == terms.pop("strong_task")
    assert terms.pop("kl") == {"weight": 0.0}
    return terms.pop("task")["weight"], terms


def same_for_all(weight, temperature, **options):
    """MLLD's terms: one weight and one temperature."""
    kl = {"weight": weight, "temperature": temperature}
    return {"mlld_kl": kl | options, "mlld_images": kl, "mlld_classes": kl}


def test_values_of_two_views():
    mlld, imagenet = PUBLISHED["mlld"]["cifar100"]["all"], PUBLISHED["mlld"]["imagenet"]["all"]
    for dataset, theirs, pairs in (("cifar100", mlld, by_pair("mlld")), ("imagenet2012", imagenet, [IMAGENET])):
        expected = same_for_all(theirs.get("loss.kd_weight"), theirs["temperature"])
        assert {on[0] for on in pairs} == {dataset}
        for on in pairs:
            assert of_two_views("mlld", *on) == (theirs["loss.ce_weight"], expected), on
    for on, theirs in by_pair("mlld_ls").items():
        expected = same_for_all(theirs["weight"], theirs["temperature"], standardise=True)
        assert of_two_views("mlld_ls", *on) == (0.1, expected), on
    cifar, imagenet = PUBLISHED["crld"]["cifar100"]["all pairs"], PUBLISHED["crld"]["imagenet"]
    for on, theirs in (
        (("cifar100", "vgg13_bn", "vgg8_bn"), cifar),
        (IMAGENET, imagenet["ResNet34/ResNet18, ResNet50/MobileNetV1"]),
    ):
        t = theirs["temperature"]
        within = {"weight": theirs["within"], "temperature": t, "threshold": theirs["tau_weak"]}
        across = {"weight": theirs["cross"], "temperature": t, "threshold": theirs["tau_strong"]}
        assert of_two_views("crld", *on) == (theirs["ce"], {"crld_within": within, "crld_across": across})


def test_values_on_imagenet():
    dkd, rld, dist, nkd, ls = (PUBLISHED[name]["imagenet"] for name in ("dkd", "rld", "dist", "nkd", "kd_ls"))
    pair, both = "ResNet34/ResNet18", "ResNet34/ResNet18, ResNet50/MobileNetV1"
    for name, theirs, options in (
        (
            "dkd",
            {**dkd["all"], **dkd[pair]},
            {"alpha": "alpha", "beta": "beta", "temperature": "t", "warmup": "warmup"},
        ),
        (
            "rld",
            {**rld["all"], **rld[pair]},
            {"beta": "beta", "temperature": "t", "alpha_temperature": "alpha_t", "warmup": "warmup"},
        ),
        ("dist", dist[both], {"weight": "weight", "temperature": "temperature", "beta": "beta", "gamma": "gamma"}),
        ("nkd", nkd[both], {"weight": "weight", "temperature": "temperature", "gamma": "gamma"}),
    ):
        found = published_terms(name, *IMAGENET)[name]
        assert {option: found[option] for option in options} == {o: theirs[key] for o, key in options.items()}, name
    found = published_terms("kd_ls", *IMAGENET)
    assert (found["task"]["weight"], found["kl"]["weight"]) == (ls[pair]["ce"], ls[pair]["weight"])
    assert found["kl"]["temperature"] == ls[pair]["temperature"]


def test_both_mobilenets_have_the_same_values():
    for name in ("mobilenetV2", "mobilenetV2_crd"):
        assert published_terms("dkd", "cifar100", "vgg13_bn", name)["dkd"]["beta"] == 6.0
    assert published_terms("dkd", "cifar10", "vgg13_bn", "mobilenetV2")["dkd"]["beta"] == 8.0  # the recipe's own
