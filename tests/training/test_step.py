"""The train step: fixed parameters, micro-batches, devices; test_golden_steps.py has the reference's figures,
test_processes.py float64 on several devices."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from run_configs import run_config

from hsakd_jax import create
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.distillation import objectives
from hsakd_jax.distillation.methods import Sample
from hsakd_jax.models import profile
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.config import Term
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training import build, optim
from hsakd_jax.training.step import NEVER, Batch, TrainStep


class Small(NamedTuple):
    """A step of a small network, variables to start from, and a rotated batch of 16 images."""

    step: TrainStep
    variables: dict
    batch: Batch

    def run(self):
        """The state after one step."""
        return jax.jit(self.step)(self.step.init(self.variables), None, self.batch)


def small(*, branches=False, train=True, accumulate=1, remat=False):
    network = create("resnet8_quarter", 10, branches).clone(remat=remat)
    objective, terms = (objectives.teacher, ("task", "joint")) if branches else (objectives.baseline, ("task",))
    optimizer = optim.sgd(0.1, 0.9, 5e-4, True)
    step = TrainStep(network, objective, dict.fromkeys(terms, 1.0), optimizer, train, accumulate=accumulate)
    g = np.random.default_rng(0)
    images = rotate(jnp.asarray(g.normal(size=(16, 8, 8, 1)), jnp.float32))
    variables = jax.device_get(initialise(network, (8, 8, 1), 0))
    return Small(step, variables, Batch(images, jnp.asarray(g.integers(0, 10, 16), jnp.int32)))


def test_what_is_not_trainable_is_fixed():
    step, variables, batch = small(branches=True, train="^branch")
    state = step.init(variables)
    for _ in range(2):
        state = jax.jit(step)(state, None, batch)
    for collection, tree in variables.items():
        for part, before in tree.items():
            after = state.variables[collection][part]
            same = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))
            assert not any(same) if part.startswith("branch") else all(same), (collection, part)
    # No momentum is kept for them either.
    params = variables["params"]
    branches = sum(x.size for n, t in params.items() if n.startswith("branch") for x in jax.tree.leaves(t))
    kept = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert kept == branches


def test_a_pattern_that_matches_nothing_is_refused():
    step, variables, _ = small(branches=True, train="^banch")
    with pytest.raises(UserError, match="no parameter matches trainable='\\^banch'"):
        step.init(variables)


def test_batch_norm_groups_are_batches_of_their_own():
    """Each group's rows come out as from a batch that is this group alone; running statistics are the groups' mean."""
    network = create("resnet8_quarter", 10, branches=False)
    variables, g = initialise(network, (8, 8, 1), 0), np.random.default_rng(0)
    images = jnp.asarray(g.normal(size=(12, 8, 8, 1)), jnp.float32)
    apply = partial(network.apply, variables, train=True, mutable=["batch_stats"])
    each = [apply(part) for part in jnp.split(images, 3)]
    grouped, updated = network.clone(batch_norm_groups=3).apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(grouped.logits, jnp.concatenate([o.logits for o, _ in each]), rtol=1e-5, atol=1e-5)
    mean = jax.tree.map(lambda *x: sum(x) / 3, *(u for _, u in each))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dict(updated), dict(mean))


def test_a_weight_may_follow_the_step():
    network, g = create("resnet8_quarter", 10, branches=False), np.random.default_rng(0)
    optimizer = optim.sgd(0.0, 0.0, 0.0, False)
    step = TrainStep(network, objectives.baseline, {"task": lambda step: (step + 1) / 2}, optimizer)
    images, labels = jnp.asarray(g.normal(size=(4, 8, 8, 1)), jnp.float32), jnp.zeros(4, jnp.int32)
    state = jax.jit(step)(step.init(initialise(network, (8, 8, 1), 0)), None, Batch(images, labels))
    assert state.metrics.sums["loss"] == pytest.approx(float(state.metrics.sums["task"]) / 2)


@pytest.mark.parametrize(
    ("schedule", "examples", "warmup", "decay"),
    [("linear_warmup", "examples_20", 20, None), ("wkd_cosine", "examples_150_of_240", 0, 150)],
)
def test_published_schedules_of_a_weight(schedule, examples, warmup, decay):
    published = reference.read("methods.json")["schedules"][schedule][examples]
    weight = build.term_weight(Term(weight=2.0, warmup=warmup, decay=decay, options={}), 7, 240)
    for epoch, factor in published.items():
        for step in (7 * (int(epoch) - 1), 7 * int(epoch) - 1):  # constant within an epoch
            assert float(weight(jnp.asarray(step))) == pytest.approx(2 * factor, abs=1e-6)


def test_a_weight_without_schedule_is_a_number():
    assert build.term_weight(Term(weight=2.0, warmup=0, decay=None, options={}), 7, 240) == 2.0


def test_each_step_has_augmentations_of_its_own(monkeypatch):
    """At learning rate 0, steps differ in the augmentation of their images only."""
    config = run_config("baseline", shape=(8, 8, 1), student__arch="resnet8_quarter", student__lr=0.0)
    network, devices = create("resnet8_quarter", 2, branches=False), Devices()
    train = Dataset(np.full((8, 8, 8, 1), 100, np.uint8), np.zeros(8, np.int32))
    monkeypatch.setattr(
        build, "augment", lambda key, images, **crop: images.astype(jnp.float32) * jax.random.uniform(key)
    )
    program = build.make_program(config, network, None, train, devices)
    state = devices.replicate(program.init(initialise(network, (8, 8, 1), 0)))
    rows, losses = devices.shard((train.images, train.labels, np.arange(8, dtype=np.int32))), [0.0]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        for _ in range(3):
            state = program.step(state, None, *rows)
            losses.append(float(state.metrics.sums["loss"]))
    first, *others = np.diff(losses)
    assert all(abs(other - first) > 1e-4 for other in others), losses


class Doubled(nn.Module):
    """An objective with a parameter and a memory of its own."""

    @nn.compact
    def __call__(self, outputs, labels, teacher, sample):
        factor = self.param("factor", lambda _: jnp.float32(2))
        seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.int32)
        seen.value = seen.value + sample.index.sum(dtype=jnp.int32)
        return {"task": factor * objectives.baseline(outputs, labels)["task"]}


def test_an_objective_may_have_parameters_and_memory_of_its_own():
    network, g = create("resnet8_quarter", 10, branches=False), np.random.default_rng(0)
    variables = initialise(network, (8, 8, 1), 0)
    variables = {
        "params": {**variables["params"], "objective": {"factor": jnp.float32(2)}},
        "batch_stats": {**variables["batch_stats"], "objective": {"seen": jnp.int32(0)}},
    }
    step = TrainStep(network, Doubled(), {"task": 1.0}, optim.sgd(0.1, 0.9, 0.0, False), accumulate=2)
    images, labels = jnp.asarray(g.normal(size=(4, 8, 8, 1)), jnp.float32), jnp.zeros(4, jnp.int32)
    state = jax.jit(step)(
        step.init(variables), None, Batch(images, labels, Sample(jnp.arange(4), labels, jax.random.key(0)))
    )
    assert state.batch_stats["objective"]["seen"] == 6
    assert state.params["objective"]["factor"] == pytest.approx(2 - 0.1 * float(state.metrics.sums["task"]) / 2)


def test_micro_batches_average_the_gradient():
    """Without BatchNorm coupling, two micro-batches give the gradient of the whole batch."""
    results = []
    for accumulate in (1, 2, 4):
        step, variables, batch = small(train="head/fc/bias", accumulate=accumulate)
        state = jax.jit(step)(step.init(variables), None, batch)
        results.append(jax.device_get((state.params, state.metrics.sums)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), results[0], other)


def test_computing_activations_again_gives_the_same_and_keeps_less():
    results, kept = [], []
    for remat in (False, True):
        step, variables, batch = small(branches=True, remat=remat)
        kept.append(profile.activation_bytes(create("resnet8_quarter", 10).clone(remat=remat), (8, 8, 1), 64))
        results.append(jax.device_get(jax.jit(step)(step.init(variables), None, batch).params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    assert kept[1] < kept[0] / 2


def test_the_first_step_that_is_not_finite_is_remembered_by_term():
    step, variables, batch = small()
    state, step = step.init(variables), jax.jit(step)
    state = step(state, None, batch)
    assert {int(at) for at in state.metrics.first_non_finite.values()} == {NEVER}
    state.params["head"]["fc"]["bias"] = state.params["head"]["fc"]["bias"].at[0].set(jnp.nan)
    state = step(state, None, batch)
    state = step(state, None, batch)
    assert {name: int(at) for name, at in state.metrics.first_non_finite.items()} == {
        "task": 1, "loss": 1, "grad_norm": 1, "top1": NEVER
    }  # fmt: skip


def test_eight_devices_compute_what_one_computes_in_float32():
    step, variables, batch = small()
    results = []
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        compiled = devices.jit(step, replicated=2, donate=True)
        state = compiled(devices.replicate(step.init(variables)), None, devices.shard(batch))
        results.append(jax.device_get((state.params, state.metrics.sums)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_more_steps_than_a_run_counts_are_refused():
    build._check_steps(run_config(student__epochs=10**6), 901)
    for key in ("epochs", "warmup"):
        with pytest.raises(UserError, match=r"1,000,000 epochs are .* more than a run counts .*: set fewer epochs"):
            build._check_steps(run_config(**{f"student__{key}": 10**6}), 50_000)
