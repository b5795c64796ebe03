"""The train step with a strong view, against one that is written out, and the views themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import enable_x64
from run_configs import run_config
from student_step import IMAGE, network, teacher_variables, variables

from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.distillation.methods import Sample
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.experiments.resolve import objective_config
from hsakd_jax.models.rotations import rotate
from hsakd_jax.training import build, optim
from hsakd_jax.training.step import Batch, TrainStep

ROWS, LR = 16, 0.1
WEIGHTS = {
    "crld": {"task": 1.0, "strong_task": 1.0, "crld_within": 2.0, "crld_across": 0.5},
    "student_strong": {"task": 1.0, "kl_aux": 1.0, "kl_final": 1.0, "strong_task": 0.3},
}
# The small random teacher is sure of nothing: these thresholds are met by some images of every micro-batch.
THRESHOLDS = {"crld_within": 0.124, "crld_across": 0.1238}
RECIPES_WITH_IT = [name for name, recipe in RECIPES.items() if recipe.strong_view]


@pytest.fixture(autouse=True)
def float64():
    with enable_x64(True):
        yield


def make_step(recipe, remat=False, **options):
    terms = {name: term for name, term in RECIPES[recipe].terms.items() if term["weight"]}
    for name in THRESHOLDS.keys() & terms.keys():
        terms[name] = {**terms[name], "threshold": THRESHOLDS[name]}
    objective = build.make_objective(objective_config("methods", terms))
    optimizer = optim.sgd(LR, 0.0, 0.0, False)
    return TrainStep(network.clone(remat=remat), objective, WEIGHTS[recipe], optimizer, True, network, **options)


def make_batch(recipe):
    g = np.random.default_rng(0)
    weak, strong = (jnp.asarray(g.normal(size=(ROWS, *IMAGE))) for _ in range(2))
    labels = jnp.asarray(g.integers(0, 10, ROWS), jnp.int32)
    sample = Sample(jnp.arange(ROWS, dtype=jnp.int32), labels, jax.random.key(0))
    return Batch(rotate(weak) if RECIPES[recipe].rotated else weak, labels, sample, strong)


def log_softmax(x):
    return x - jnp.log(jnp.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits, labels):
    return -(log_softmax(logits) * jax.nn.one_hot(labels, 10)).sum(-1).mean()


def kl(p, q, temperature):
    p, q = log_softmax(p / temperature), log_softmax(q / temperature)
    return temperature**2 * (jnp.exp(p) * (p - q)).sum(-1)


def crld(weak, strong, taught, taught_strong, labels):
    within, across = (
        jnp.exp(log_softmax(t.logits)).max(-1) >= THRESHOLDS[term]
        for term, t in (("crld_within", taught), ("crld_across", taught_strong))
    )
    own = kl(taught.logits, weak.logits, 4) + kl(taught_strong.logits, strong.logits, 4)
    other = kl(taught.logits, strong.logits, 4) + kl(taught_strong.logits, weak.logits, 4)
    return {
        "task": cross_entropy(weak.logits, labels),
        "strong_task": cross_entropy(strong.logits, labels),
        "crld_within": (own * within).sum() / len(labels),
        "crld_across": (other * across).sum() / len(labels),
    }


def student_strong(weak, strong, taught, taught_strong, labels):
    pairs = zip(taught.aux_logits, weak.aux_logits, strict=True)
    return {
        "task": cross_entropy(weak.logits[::4], labels),
        "kl_aux": sum(kl(p, q, 3).mean() for p, q in pairs),
        "kl_final": kl(taught.logits, weak.logits, 3).mean(),
        "strong_task": cross_entropy(strong.logits, labels),
    }


TERMS = {"crld": crld, "student_strong": student_strong}


@partial(jax.jit, static_argnums=0)
def by_hand(recipe, params, batch_stats, batch):
    """Terms, gradient and running statistics of one batch."""

    def passes(params):
        apply = partial(network.apply, {"params": params, "batch_stats": batch_stats}, train=True)
        return [apply(images, mutable=["batch_stats"]) for images in (batch.images, batch.strong)]

    def loss(params):
        taught = [network.apply(teacher_variables, images) for images in (batch.images, batch.strong)]
        (weak, _), (strong, _) = passes(params)
        terms = TERMS[recipe](weak, strong, *taught, batch.labels)
        return sum(WEIGHTS[recipe][name] * term for name, term in terms.items()), terms

    grads, terms = jax.grad(loss, has_aux=True)(params)
    (_, after_weak), (_, after_strong) = (jax.lax.stop_gradient(found) for found in passes(params))
    # 0.9 of what was there and 0.1 of the batch, twice: the weak view first. Branches see the weak view only.
    weak = dict(after_weak)["batch_stats"]
    both = jax.tree.map(
        lambda before, weak, strong: 0.9 * weak + (strong - 0.9 * before),
        batch_stats, weak, dict(after_strong)["batch_stats"],
    )  # fmt: skip
    return terms, grads, {name: (weak if name.startswith("branch") else both)[name] for name in weak}


def assert_close(found, expected, tolerance=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize(("recipe", "remat"), [("crld", False), ("student_strong", True)])
def test_step_is_two_passes(recipe, remat):
    step, batch = make_step(recipe, remat), make_batch(recipe)
    state = jax.jit(step)(step.init(variables), teacher_variables, batch)
    with jax.numpy_dtype_promotion("standard"):
        terms, grads, stats = by_hand(recipe, variables["params"], variables["batch_stats"], batch)
    assert_close({name: state.metrics.sums[name] for name in terms}, terms)
    assert_close(state.params, jax.tree.map(lambda p, g: p - LR * g, variables["params"], grads))
    assert_close(state.batch_stats, stats)


def test_thresholds_keep_some_images():
    batch = make_batch("crld")
    for images, threshold in zip((batch.images, batch.strong), THRESHOLDS.values(), strict=True):
        sure = jnp.exp(log_softmax(network.apply(teacher_variables, images).logits)).max(-1) >= threshold
        assert all(0 < part.mean() < 1 for part in (sure[::2], sure[1::2]))


def test_top1_is_that_of_the_weak_view():
    step, batch = make_step("crld"), make_batch("crld")
    logits = network.apply(variables, batch.images, True, mutable=["batch_stats"])[0].logits
    labels = jnp.argmax(logits, -1)
    state = jax.jit(step)(step.init(variables), teacher_variables, batch._replace(labels=labels))
    assert state.metrics.sums["top1"] == 1


@pytest.mark.parametrize("recipe", WEIGHTS)
def test_micro_batches_have_both_views_of_their_images(recipe):
    step, batch = make_step(recipe, accumulate=2), make_batch(recipe)
    state = jax.jit(step)(step.init(variables), teacher_variables, batch)
    stats, total = variables["batch_stats"], []
    for i in range(2):
        per_image = batch.images.reshape(ROWS, -1, *IMAGE)[i::2].reshape(-1, *IMAGE)
        part = Batch(per_image, batch.labels[i::2], None, batch.strong[i::2])
        with jax.numpy_dtype_promotion("standard"):
            _, grads, stats = by_hand(recipe, variables["params"], stats, part)
        total.append(grads)
    expected = jax.tree.map(lambda p, a, b: p - LR * (a + b) / 2, variables["params"], *total)
    assert_close(state.params, expected)
    assert_close(state.batch_stats, stats)


def test_eight_devices_compute_what_one_computes():
    step, batch, results = make_step("student_strong"), make_batch("student_strong"), []
    # One class per training image, on every device.
    batch = batch._replace(sample=batch.sample._replace(classes=None, key=None))
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        compiled = devices.jit(step, replicated=2, donate=True)
        state, taught = devices.replicate((step.init(variables), teacher_variables))
        state = compiled(state, taught, devices.shard(batch))
        results.append(jax.device_get((state.params, state.batch_stats, state.metrics.sums)))
    assert_close(*results, tolerance=1e-8)


def test_recipes_with_a_strong_view_have_terms_that_use_it():
    assert RECIPES_WITH_IT == ["mlld", "mlld_ls", "crld", "student_strong"]
    uses = {name for name, recipe in RECIPES.items() if "strong_task" in recipe.terms}
    assert uses == set(RECIPES_WITH_IT)
    assert {RECIPES[name].objective for name in RECIPES_WITH_IT} == {"methods"}


def views(recipe, key=0, cropped=False, **keys):
    """Images of noise, and what a run sees of them, in grey levels; None for a strong view that it has not."""
    config = run_config(recipe, "cifar100", shape=(8, 8, 3), data__pad=1, data__mean=(0.0,), data__std=(1.0,), **keys)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    made = [build.training_images, *([build.strong_view] if config.training.strong_view else [])]
    found = [jax.jit(partial(f, config=config, cropped=cropped))(jax.random.key(key), images) for f in made]
    found += [None] * (2 - len(found))
    return images, *(None if view is None else np.round(np.asarray(view) * 255).astype(np.uint8) for view in found)


def test_weak_view_is_that_of_a_run_without_a_strong_one():
    _, alone, nothing = views("kd")
    assert nothing is None
    _, weak, strong = views("crld")
    np.testing.assert_array_equal(weak, alone)
    assert strong.shape == weak.shape
    _, rotated, upright = views("student_strong")
    assert (len(rotated), len(upright)) == (4 * 32, 32)
    np.testing.assert_array_equal(rotated[::4], weak)
    np.testing.assert_array_equal(upright, strong)
    assert (views("crld", key=1)[2] != strong).any((1, 2, 3)).all()


def test_strong_view_has_a_crop_and_a_flip_of_its_own(monkeypatch):
    monkeypatch.setattr(build, "rand_augment", lambda key, images: images)
    images, weak, strong = views("crld")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def place(view, image):
        return next(
            (i, j, flip)
            for i in range(3) for j in range(3) for flip in (1, -1)
            if (image[i : i + 8, j : j + 8][:, ::flip] == view).all()
        )  # fmt: skip

    places = [[place(x, image) for x, image in zip(view, padded, strict=True)] for view in (weak, strong)]
    same = np.array(places[0]) == np.array(places[1])
    assert all(0.15 < part < 0.75 for part in same.mean(0))  # by chance a third of the rows and columns, half the flips
    _, weak, strong = views("crld", cropped=True)  # photographs: only the flips differ
    mirrored = (weak[:, :, ::-1] == strong).all((1, 2, 3))
    assert ((weak == strong).all((1, 2, 3)) ^ mirrored).all()
    assert 0 < mirrored.mean() < 1


def test_a_step_from_uint8_images_on_any_number_of_devices():
    """Strong views are the same bit for bit, so that float32 differs by rounding alone."""
    config = run_config("crld", student__lr=0.1)
    g, results = np.random.default_rng(0), []
    train = Dataset(g.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8), g.integers(0, 2, 16).astype(np.int32))
    with enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a command
        given = jax.tree.map(lambda x: np.asarray(x, np.float32), (variables, teacher_variables))
        for count in (1, 8):
            devices = Devices(jax.devices()[:count])
            program = build.make_program(config, network, network, train, devices)
            assert program.objective_init(*given) == {}
            state, taught = devices.replicate((program.init(given[0]), given[1]))
            rows = devices.shard((train.images, train.labels, np.arange(16, dtype=np.int32)))
            state = program.step(state, taught, *rows)
            results.append(jax.device_get((state.params, state.batch_stats, state.metrics.sums)))
    assert set(results[0][2]) == {*WEIGHTS["crld"], "loss", "top1", "grad_norm"}
    assert_close(*results, tolerance=1e-4)
