"""Three steps of each method with parameters or memory of its own against a reference in PyTorch, in float64."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from float64 import enable_x64
from golden import method_steps as golden
from run_configs import run_config

from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.distillation.methods import contrastive
from hsakd_jax.models import resnet
from hsakd_jax.models.network import Network
from hsakd_jax.training import build

FIGURES = golden.read()
TOLERANCE = 1e-9


@pytest.mark.parametrize("name", golden.CASES)
def test_three_steps(name):
    with enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        found = run(golden.CASES[name])
    for t, (ours, figures) in enumerate(zip(found, FIGURES[name], strict=True)):
        assert ours.keys() == figures.keys()
        errors = {key: error(ours[key], figures[key]) for key in figures}
        assert max(errors.values()) <= TOLERANCE, (t, {key: e for key, e in errors.items() if e > TOLERANCE})


def error(ours, figures):
    """Greatest difference over greatest absolute figure."""
    ours, figures = np.asarray(ours), np.asarray(figures)
    return float(abs(ours - figures).max() / abs(figures).max())


def run(case):
    """For each step the metrics and the `figure` of each array that a run has, all by name."""
    config = configure(case)
    student, teacher = (network(widths) for widths in (golden.STUDENT_WIDTHS, golden.TEACHER_WIDTHS))
    if case.projects:
        student = student.clone(projector=golden.LAST_MAP)
    trained, taught_by = (student, teacher) if case.trains == "student" else (teacher, None)
    train, devices = Dataset(golden.images(), golden.classes()), Devices(jax.devices()[:1])
    program = build.make_program(config, trained, taught_by, train, devices)
    variables, teacher_variables = (
        filled(shapes(net), name) for net, name in ((trained, case.trains), (teacher, "teacher"))
    )
    own = jax.eval_shape(program.objective_init, variables, teacher_variables)
    variables = merged(variables, filled(own, case.trains))
    state = devices.replicate(program.init(variables))
    before, found = dict.fromkeys(state.metrics.sums, 0.0), []
    drawn = golden.negatives()
    with mock.patch.object(contrastive, "draw_negatives", lambda sample, count: jnp.asarray(drawn)[sample.index]):
        for t in range(golden.STEPS):
            index = golden.index(t)
            rows = devices.shard((train.images[index], train.labels[index], index))
            state = program.step(state, teacher_variables, *rows)
            sums = {name: float(total) for name, total in state.metrics.sums.items() if name != "top1"}
            arrays = {path: golden.figure(path, x) for path, x in by_path(state.variables).items()}
            found.append({name: total - before[name] for name, total in sums.items()} | arrays)
            before = sums
    assert all(x.dtype == np.float64 for x in jax.tree.leaves((state.variables, state.metrics.sums)))
    return found


def configure(case):
    """The config of a case's recipe, whose terms must be those of the reference."""
    section = "head" if case.trains == "teacher" else "student"
    training = {
        "epochs": golden.EPOCHS,
        "batch": golden.BATCH,
        "lr": golden.LR,
        "schedule": "multi_step",
        "milestones": (golden.MILESTONE,),
        "gamma": golden.GAMMA,
        "warmup": 0,
        "momentum": golden.MOMENTUM,
        "nesterov": True,
        "weight_decay": golden.WEIGHT_DECAY,
    }
    keys = {f"{section}.{key}": value for key, value in training.items()}
    keys |= {"data.pad": 0, "data.flip": False, "data.mean": (golden.MEAN,), "data.std": (golden.STD,)}
    keys |= {f"objective.{case.recipe}.{key}": value for key, value in case.changed.items()}
    classes = tuple(map(str, range(golden.NUM_CLASSES)))
    config = run_config(case.recipe, classes=classes, shape=golden.IMAGE_SHAPE, **keys)
    terms = {
        name: {"weight": term.weight, **term.options}
        | ({"warmup": term.warmup} if term.warmup else {})
        | ({"decay": term.decay} if term.decay is not None else {})
        for name, term in config.objective.terms.items()
        if term.weight
    }
    assert terms == case.terms, "change the case to the recipe's terms, and make its figures again"
    return config


def network(widths):
    stem, *stages = widths
    parts = resnet.BasicBlock, [1] * len(stages), stages, lambda *args, **named: resnet.Stem(*args, stem, **named)
    return Network(resnet.resnet(*parts), golden.NUM_CLASSES, branches=False)


def shapes(net):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *golden.IMAGE_SHAPE)))


def by_path(variables):
    """The arrays of all collections; a name says which collection it is of."""
    return {path: x for tree in variables.values() for path, x in flatten_dict(tree, sep="/").items()}


def filled(tree, network):
    """The variables before the first step, of a tree of shapes."""
    flat = flatten_dict(dict(tree))
    return unflatten_dict(
        {(kind, *path): golden.start(network, "/".join(path), x.shape) for (kind, *path), x in flat.items()}
    )


def merged(variables, own):
    return {kind: {**variables[kind], **own.get(kind, {})} for kind in variables}
