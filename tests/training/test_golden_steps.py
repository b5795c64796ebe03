"""The train step against the reference's recorded runs, each by the recipe of its name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from float64 import enable_x64

from hsakd_jax.distillation import objectives
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.experiments.resolve import objective_config
from hsakd_jax.interop.torch_weights import to_state_dict
from hsakd_jax.models import NETWORKS
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.models.rotations import rotate
from hsakd_jax.training import optim
from hsakd_jax.training.build import make_objective
from hsakd_jax.training.step import Batch, TrainStep

STEPS = reference.read("steps.json")["steps"]
# What is left out of the fast tests: networks and objectives that these have, in other pairs.
SLOW = {
    "student/resnet8x4_aux<-resnet32x4_aux",
    "student/ShuffleV1_aux<-wrn_40_2_aux",
    "student/mobilenetV2_aux<-vgg13_bn_aux",
    "student/resnet18_imagenet_aux<-resnet34_imagenet_aux",
    "teacher/vgg13_bn_aux",
    "teacher_frozen/wrn_40_2_aux",
    "mutual/ShuffleV2_aux",
}
THOROUGH = {
    "student/mobilenetV2_aux<-ResNet50_aux",
    "student/resnet20_aux<-resnet56_aux",
    "student/ShuffleV2_aux<-resnet32x4_aux",
    "teacher/resnet56_aux",
    "teacher/wrn_40_2_aux",
    "mutual/wrn_40_2_aux",
}


def marks(key):
    return [pytest.mark.slow] * (key in SLOW) + [pytest.mark.thorough] * (key in THOROUGH)


@pytest.mark.parametrize("key", [pytest.param(key, marks=marks(key)) for key in STEPS])
def test_golden_steps_in_float64(key):
    try:
        with enable_x64(True), jax.numpy_dtype_promotion("standard"):  # as in a command
            errors = run(key)
    finally:
        jax.clear_caches()  # a program of each pair would stay in memory
    assert set(errors) == {"terms", "grad_norm", "norms"}
    assert all(error <= 1e-8 for error in errors.values()), errors


def peer(name):
    """A network as a part of `Peers`."""
    return partial(Network, NETWORKS[name.removesuffix("_aux")](), 100)


def run(key):
    """Relative errors of one run: {'terms': .., 'grad_norm': .., 'norms': ..}."""
    record = STEPS[key]
    kind, student, teacher = record["kind"], record.get("student", record.get("network")), record.get("teacher")
    arch, network = reference.create(student)
    if kind == "mutual":
        network = Peers((peer(student),) * 2)
        each = [reference.variables(arch, f"golden-v1/net{i}") for i in (1, 2)]
        variables = {c: {f"peer{i}": v[c] for i, v in enumerate(each, 1)} for c in ("params", "batch_stats")}
    else:
        variables = reference.variables(arch)
    taught, teacher_variables = None, None
    if teacher:
        teacher_arch, taught = reference.create(teacher)
        teacher_variables = reference.variables(teacher_arch)
    recipe = RECIPES[kind]
    if kind == "kd":  # the figures have the weights and the temperature of HSAKD's own terms
        recipe = recipe._replace(terms={"task": {"weight": 1.0}, "kl": {"weight": 1.0, "temperature": 3.0}})
    assert (recipe.branches, recipe.rotated) == (student.endswith("_aux"), kind not in ("baseline", "kd"))
    weights = {name: term["weight"] for name, term in recipe.terms.items() if term["weight"]}
    assert {*weights, "loss", "grad_norm"} == set(record["log"][0])
    optimizer = optim.sgd(record["lr"], record["momentum"], record["weight_decay"], record["nesterov"])
    objective = make_objective(objective_config(recipe.objective, recipe.terms))
    step = TrainStep(network, objective, weights, optimizer, recipe.trainable or True, taught)
    state, step = step.init(variables), jax.jit(step)
    errors = {"terms": 0.0, "grad_norm": 0.0, "norms": 0.0}

    def compare(group, ours, theirs):
        errors[group] = max(errors[group], abs(float(ours) - theirs) / abs(theirs))

    before = dict.fromkeys(record["log"][0], 0.0)
    for t, log in enumerate(record["log"]):
        tag = f"{kind}/{student}/{t}"
        images, labels = reference.inputs(tag, record["batch"], record["resolution"], record["num_classes"])
        images = rotate(images) if recipe.rotated else images
        state = step(state, teacher_variables, Batch(images, labels))
        assert all(x.dtype == np.float64 for x in jax.tree.leaves((state.variables, state.metrics.sums)))
        for name, value in log.items():
            total = float(state.metrics.sums[name])
            compare("grad_norm" if name == "grad_norm" else "terms", total - before[name], value)
            before[name] = total
    after = record["norms_after"] if kind == "mutual" else [record["norms_after"]]
    for i, norms in enumerate(after, 1):
        tree = {c: v[f"peer{i}"] if kind == "mutual" else v for c, v in state.variables.items()}
        found = to_state_dict(student.removesuffix("_aux"), reference.create(student)[1], tree)
        assert {name for name in found if not name.endswith("num_batches_tracked")} == set(norms)
        for name, norm in norms.items():
            compare("norms", np.linalg.norm(found[name]), norm)
    return errors


@pytest.fixture
def traced_anew():
    """Forms of a computation are chosen when it is traced, and what another backend has shall not stay."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("traced_anew")
def test_first_golden_step_in_float32(monkeypatch, backend):
    """One run in float32 and its tolerances; the others are covered in float64.

    Under another backend's name, so that what accelerators compute is right too.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    record = STEPS["student/wrn_16_2_aux<-wrn_40_2_aux"]
    arch, network = reference.create(record["student"])
    teacher_arch, teacher = reference.create(record["teacher"])
    variables, taught = (reference.variables(a, dtype=np.float32) for a in (arch, teacher_arch))
    images, labels = reference.inputs(f"student/{record['student']}/0", record["batch"], 32, 100)
    terms = dict.fromkeys(("task", "kl_aux", "kl_final"), 1.0)
    step = TrainStep(network, objectives.student, terms, optim.sgd(0.05, 0.9, 5e-4, True), True, teacher)
    batch = Batch(rotate(jnp.asarray(images, jnp.float32)), jnp.asarray(labels))
    state = jax.jit(step)(step.init(variables), taught, batch)
    for name, value in record["log"][0].items():
        tolerance = {"grad_norm": 1e-3, "task": 1e-5, "loss": 1e-5}.get(name, 1e-4)
        absolute = 1e-6 if name.startswith("kl") else 0
        assert abs(float(state.metrics.sums[name]) - value) <= tolerance * value + absolute, name
