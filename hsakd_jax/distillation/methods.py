"""The distillation methods that HSAKD is compared with, as named terms under one interface.

A term is a function `term(outputs, labels, teacher, sample, **options)` of a plain batch, SSKD's of a rotated one, and
gives a scalar in at least float32. It is called inside `Rival`, so it may create layers; they start as PyTorch's do.
The options' defaults, and the weights in `recipes`, are the published ones: those of CRD's benchmark (Tian et al. 2020,
arXiv 1910.10699) where no other source is named. HSAKD's table combines the methods with plain distillation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import constant, variance_scaling

from hsakd_jax.distillation import losses, objectives
from hsakd_jax.models.layers import BatchNorm, torch_bias, torch_kernel
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.ops import at_least_float32, convolve
from hsakd_jax.models.rotations import ROTATIONS, upright

Array = jax.Array


class Sample(NamedTuple):
    """Which training images a batch holds.

    Attributes:
      index: [B], int32, positions in the training set.
      classes: [n], int32, labels of all training images.
      key: random key of this step.
    """

    index: Array
    classes: Array
    key: Array


class Rival(nn.Module):
    """An objective with parameters and memory of its own.

    What is trained is in 'params', what else is remembered in 'batch_stats'; paths begin with the method's name.

    Attributes:
      terms: name -> options, without weights, of terms of `TERMS` or of `objectives.TERMS`.
    """

    terms: Mapping[str, Mapping[str, Any]]

    @nn.compact
    def __call__(self, outputs: Outputs, labels: Array, teacher: Outputs | None, sample: Sample) -> dict[str, Array]:
        """Named unweighted terms; labels are integers [B]."""
        given = outputs, labels, jax.lax.stop_gradient(teacher)
        return {
            name: TERMS[name](*given, sample, **options) if name in TERMS else objectives.TERMS[name](*given, **options)
            for name, options in self.terms.items()
        }


# What several methods need.


def _embedding(outputs: Outputs) -> Array:
    if outputs.embedding is None:
        raise ValueError("the outputs have no embedding")
    return at_least_float32(outputs.embedding)


def _stages(outputs: Outputs, teacher: Outputs) -> dict[int, tuple[Array, Array]]:
    """Maps of student and teacher, paired from the deepest backwards, by the student's stage, counted from 1."""
    ahead = len(teacher.features) - len(outputs.features)
    pairs = {l: (s, teacher.features[l + ahead - 1]) for l, s in enumerate(outputs.features, 1) if l + ahead > 0}
    return jax.tree.map(at_least_float32, pairs)


def _alike(outputs: Outputs, teacher: Outputs) -> dict[int, tuple[Array, Array]]:
    """`_stages`, the larger map average-pooled to the size of the smaller one."""

    def pool(a, b):
        size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
        return _pool(a, size), _pool(b, size)

    return {l: pool(*pair) for l, pair in _stages(outputs, teacher).items()}


def _pool(x: Array, size: tuple[int, int]) -> Array:
    """[B, H, W, C] -> [B, *size, C]."""
    (batch, height, width, channels), (h, w) = x.shape, size
    if height % h or width % w:
        raise ValueError(f"maps of {height}x{width} and {h}x{w} do not compare: one must divide the other")
    return x.reshape(batch, h, height // h, w, width // w, channels).mean((2, 4))


def _unit(x: Array) -> Array:
    """Rows (last axis) of length 1; a row of zeros stays so and gets no gradient."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def _products(a: Array, b: Array) -> Array:
    """Inner products of rows, [..., R, D], [..., S, D] -> [..., R, S]."""
    # The losses take small differences of these: the short mantissa of accelerators' default would be seen.
    return jnp.einsum("...rd,...sd->...rs", a, b, precision="highest")


class Linear(nn.Module):
    """Linear layers of named arrays, each its own: [B, D] -> [B, features]."""

    features: int

    @nn.compact
    def __call__(self, **named: Array) -> list[Array]:
        return [_linear(x, self.features, name) for name, x in named.items()]


def _linear(x: Array, features: int, name: str) -> Array:
    return nn.Dense(features, kernel_init=torch_kernel, bias_init=torch_bias(x.shape[-1]), name=name)(x)


# The methods.


def dkd(outputs, labels, teacher, sample, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> Array:
    """Decoupled KD: KL of target against rest, and KL among the rest (Zhao et al. 2022, arXiv 2203.08679, mdistiller).

    Published with a weight that grows linearly over the first 20 epochs.
    """

    def decouple(logits):
        logits = at_least_float32(logits) / temperature
        target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        # Finite, since KL of infinities is NaN; small enough that its exponential is 0.
        rest = jnp.where(target, -1e4, logits)
        own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return jnp.stack([own, jax.nn.logsumexp(rest, -1)], -1), rest

    (target_t, rest_t), (target_s, rest_s) = decouple(teacher.logits), decouple(outputs.logits)
    terms = alpha * losses.kl(target_t, target_s, 1.0) + beta * losses.kl(rest_t, rest_s, 1.0)
    return temperature**2 * terms


class Regressor(nn.Module):
    """Convolution to the size [H, W, C] of another map, BatchNorm, ReLU."""

    size: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (height, width, channels), (h, w, features) = x.shape[1:], self.size
        if (2 * height, 2 * width) == (h, w):
            # PyTorch counts a transposed convolution's outputs as its fan-in.
            init = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
            bias = torch_bias(16 * features)
            x = nn.ConvTranspose(features, (4, 4), (2, 2), kernel_init=init, bias_init=bias, name="conv")(x)
        else:
            kernel, stride, pad = (3, 2, 1) if (height, width) == (2 * h, 2 * w) else (1 + height - h, 1, 0)
            if kernel < 1 or (stride == 1 and width - w != height - h):
                raise ValueError(f"no regressor from a map of {height}x{width} to one of {h}x{w}")
            x = nn.Conv(
                features,
                (kernel, kernel),
                stride,
                pad,
                kernel_init=torch_kernel,
                bias_init=torch_bias(kernel * kernel * channels),
                conv_general_dilated=convolve,
                name="conv",
            )(x)
        return nn.relu(BatchNorm(True, name="bn")(x))


def fitnet(outputs, labels, teacher, sample, stage: int = 2) -> Array:
    """FitNets: squared error of the map after `stage`, through a regressor (Romero et al. 2015, arXiv 1412.6550)."""
    pairs = _stages(outputs, teacher)
    if stage not in pairs:
        raise ValueError(
            f"fitnet: choose a stage that has a partner (paired from the deepest): {', '.join(map(str, pairs))}"
        )
    s, t = pairs[stage]
    return jnp.square(Regressor(t.shape[1:], name="fitnet")(s) - t).mean()


def at(outputs, labels, teacher, sample) -> Array:
    """Attention transfer: squared error of normalised maps of energy (Zagoruyko and Komodakis 2017, arXiv 1612.03928).

    Sum over stages.
    """

    def attention(x):
        return _unit(jnp.square(x).mean(-1).reshape(len(x), -1))

    pairs = _alike(outputs, teacher).values()
    return jnp.stack([jnp.square(attention(s) - attention(t)).mean() for s, t in pairs]).sum()


def sp(outputs, labels, teacher, sample) -> Array:
    """Similarity-preserving KD: similarities of a batch's last maps (Tung and Mori 2019, arXiv 1907.09682)."""

    def similarities(x):
        x = at_least_float32(x).reshape(len(x), -1)
        return _unit(_products(x, x))

    return jnp.square(similarities(outputs.features[-1]) - similarities(teacher.features[-1])).mean()


def cc(outputs, labels, teacher, sample, features: int = 128) -> Array:
    """Correlation congruence, as its authors gave it to CRD's benchmark (Peng et al. 2019, arXiv 1904.01802).

    Products of neighbouring images' distances between student and teacher.
    """
    s, t = Linear(features, name="cc")(student=_embedding(outputs), teacher=_embedding(teacher))
    delta = jnp.abs(s - t)
    return (delta[:-1] * delta[1:]).sum(-1).mean()


class Gaussians(nn.Module):
    """VID's regressors and variances; of pairs of maps the sum of negative log-likelihoods, without their constant."""

    variance: float
    eps: float

    @nn.compact
    def __call__(self, pairs: Mapping[int, tuple[Array, Array]]) -> Array:
        start, found = constant(math.log(math.expm1(self.variance - self.eps))), []
        for stage, (mean, target) in pairs.items():
            channels = target.shape[-1]
            for i in (1, 2, 3):
                mean = nn.relu(mean) if i > 1 else mean
                name = f"stage{stage}_conv{i}"
                mean = nn.Dense(channels, use_bias=False, kernel_init=torch_kernel, name=name)(mean)
            scale = self.param(f"stage{stage}_log_scale", start, (channels,)).reshape(1, 1, 1, -1)
            variance = jax.nn.softplus(scale) + self.eps
            found.append(0.5 * (jnp.square(mean - target) / variance + jnp.log(variance)).mean())
        return jnp.stack(found).sum()


def vid(outputs, labels, teacher, sample, variance: float = 5.0, eps: float = 1e-5) -> Array:
    """Variational information distillation (Ahn et al. 2019, arXiv 1904.05835); `variance` is that at the start."""
    return Gaussians(variance, eps, name="vid")(_alike(outputs, teacher))


def rkd(outputs, labels, teacher, sample, distance: float = 25.0, angle: float = 50.0) -> Array:
    """Relational KD: distances of pairs and angles of triples of embeddings (Park et al. 2019, arXiv 1904.05068)."""

    def relations(x):
        towards = x[None] - x[:, None]
        others = ~jnp.eye(len(x), dtype=bool)
        distances = jnp.where(others, jnp.sqrt(jnp.maximum(jnp.square(towards).sum(-1), 1e-12)), 0)
        directions = _unit(towards)
        return distances / (distances.sum() / (len(x) * (len(x) - 1))), _products(directions, directions)

    pairs = zip(relations(_embedding(outputs)), relations(_embedding(teacher)), strict=True)
    by_distance, by_angle = (optax.losses.huber_loss(s, t).mean() for s, t in pairs)
    return distance * by_distance + angle * by_angle


def pkt(outputs, labels, teacher, sample, eps: float = 1e-7) -> Array:
    """Probabilistic knowledge transfer: KL of cosine similarities in a batch (Passalis and Tefas 2018, 1803.10837).

    Mean over all pairs of images.
    """

    def probabilities(x):
        similarities = (_products(_unit(x), _unit(x)) + 1) / 2
        return similarities / similarities.sum(-1, keepdims=True)

    q, p = probabilities(_embedding(outputs)), probabilities(_embedding(teacher))
    return (p * jnp.log((p + eps) / (q + eps))).mean()


def draw_negatives(sample: Sample, count: int) -> Array:
    """Positions of images of other classes than each image's own, uniform with replacement: [B, count]."""
    order = jnp.argsort(sample.classes)
    ordered, own = sample.classes[order], sample.classes[sample.index]
    first = jnp.searchsorted(ordered, own)
    size = jnp.searchsorted(ordered, own, side="right").astype(first.dtype) - first

    def draw(index, first, size):
        # A key for each image: neither micro-batches nor devices change what it draws.
        key = jax.random.fold_in(sample.key, index)
        place = jax.random.randint(key, (count,), 0, len(order) - size, first.dtype)
        return order[jnp.where(place < first, place, place + size)]

    return jax.vmap(draw)(sample.index, first, size)


class Contrast(nn.Module):
    """CRD's projections, and its memory: of every training image both projections, of either side a constant Z."""

    features: int
    momentum: float

    @nn.compact
    def __call__(self, student: Array, teacher: Array, sample: Sample, count: int, temperature: float) -> Array:
        batch, n, bound = len(student), len(sample.classes), (3 / self.features) ** 0.5
        anchors = {"student": student, "teacher": teacher}
        anchors = {side: _unit(_linear(x, self.features, side)) for side, x in anchors.items()}

        def start():
            return jax.random.uniform(self.make_rng("params"), (n, self.features), student.dtype, -bound, bound)

        banks = {side: self.variable("batch_stats", f"{side}_bank", start) for side in anchors}
        # Products with the whole bank, [B, n], each weighted by how often it was drawn: gathering the drawn rows would
        # take [B, count, features], which is larger unless n is, and its gradient would add in no fixed order.
        drawn = jnp.zeros((batch, n), student.dtype)
        drawn = drawn.at[jnp.arange(batch)[:, None], draw_negatives(sample, count)].add(1)
        noise, eps, loss = count / n, 1e-7, []
        for side, other in (("student", "teacher"), ("teacher", "student")):
            anchor, bank = anchors[side], jax.lax.stop_gradient(banks[other].value)
            scores = jnp.exp(_products(anchor, bank) / temperature)
            own = jnp.take_along_axis(scores, sample.index[:, None], 1)
            # 0 until the first batch sets it.
            z = self.variable("batch_stats", f"{side}_z", jnp.zeros, (), student.dtype)
            mean = (own.sum() + (drawn * scores).sum()) / (batch * (count + 1))
            now = jax.lax.stop_gradient(jnp.where(z.value > 0, z.value, n * mean))
            own, scores = own / now, scores / now
            right = jnp.log(own / (own + noise + eps))
            wrong = drawn * jnp.log(noise / (scores + noise + eps))
            loss.append(-(right.sum() + wrong.sum()) / batch)
            if not self.is_initializing():
                z.value = now
        if not self.is_initializing():
            for side, bank in banks.items():
                mixed = self.momentum * bank.value[sample.index] + (1 - self.momentum) * anchors[side]
                bank.value = bank.value.at[sample.index].set(jax.lax.stop_gradient(_unit(mixed)))
        return loss[0] + loss[1]


def crd(
    outputs,
    labels,
    teacher,
    sample,
    negatives: int = 16384,
    temperature: float = 0.07,
    features: int = 128,
    momentum: float = 0.5,
) -> Array:
    """Contrastive representation distillation: an image among those of other classes (Tian et al. 2020, 1910.10699).

    Noise-contrastive estimation with either side's projection against the other side's memory. Negatives are drawn
    with replacement; the published code does so only where there are too few.
    """
    contrast = Contrast(features, momentum, name="crd")
    return contrast(_embedding(outputs), _embedding(teacher), sample, negatives, temperature)


class Heads(nn.Module):
    """SSKD's projections of named embeddings, each its own: linear, ReLU, linear, as wide as the embedding."""

    @nn.compact
    def __call__(self, **named: Array) -> list[Array]:
        return [Head(name=name)(x) for name, x in named.items()]


class Head(nn.Module):
    """[R, D] -> [R, D]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _linear(nn.relu(_linear(x, x.shape[-1], "fc1")), x.shape[-1], "fc2")


def _rotated(x: Array, batch: int) -> Array:
    """The rows that are not upright, image-major: [4B, ...] -> [3B, ...]."""
    return x.reshape(batch, -1, *x.shape[1:])[:, 1:].reshape(-1, *x.shape[1:])


def _repeat(x: Array) -> Array:
    """Of each image for its rotated rows, [B] -> [3B]."""
    return jnp.repeat(x, ROTATIONS - 1)


def _similarities(x: Array, batch: int) -> Array:
    """Cosines of rotated and upright rows, [4B, D] -> [3B, B]."""
    x = _unit(x)
    return _products(_rotated(x, batch), upright(x, batch))


def keep(scores: Array, targets: Array, kept: float) -> Array:
    """Which rows a teacher teaches: those it gets right, and of the others the share `kept` that it errs least in.

    Args:
      scores: [R, K], the teacher's.
      targets: [R], integers.
      kept: 0 to 1; the number of rows is rounded down.

    Returns:
      [R], bool.
    """
    rank = (scores > jnp.take_along_axis(scores, targets[:, None], 1)).sum(-1)
    wrong = (rank > 0).sum()
    count = len(rank) - wrong + jnp.floor(wrong.astype(jnp.float32) * kept).astype(wrong.dtype)
    return jnp.argsort(jnp.argsort(rank)) < count


def _kl(teacher: Array, student: Array, temperature: float, rows: Array) -> Array:
    """`losses.kl` of chosen rows, [R, K], [R, K], [R] bool."""
    # Rows chosen at run time have no fixed number, so that of each is computed.
    each = jax.vmap(losses.kl, (0, 0, None))(teacher, student, temperature)
    return jnp.where(rows, each, 0).sum() / jnp.maximum(rows.sum(), 1).astype(each.dtype)


def sskd_head(outputs, labels, teacher, sample) -> Array:
    """SSKD's first stage, of the frozen teacher alone: its head learns to find a rotated image's upright one."""
    (head,) = Heads(name="sskd")(teacher_head=jax.lax.stop_gradient(_embedding(outputs)))
    return losses.cross_entropy(_similarities(head, len(labels)), _repeat(jnp.arange(len(labels))))


def sskd_kl(outputs, labels, teacher, sample, temperature: float = 4.0, kept: float = 1.0) -> Array:
    """SSKD's KL of rotated images' class logits (Xu et al. 2020, arXiv 2006.07114; weights of its own code)."""
    t, s = (_rotated(at_least_float32(o.logits), len(labels)) for o in (teacher, outputs))
    return _kl(t, s, temperature, keep(t, _repeat(labels), kept))


def sskd_ss(outputs, labels, teacher, sample, temperature: float = 0.5, kept: float = 0.75) -> Array:
    """SSKD's KL of similarities between rotated and upright images (Xu et al. 2020, arXiv 2006.07114).

    The teacher's head is that of `sskd_head`, and fixed.
    """
    heads = Heads(name="sskd")(student_head=_embedding(outputs), teacher_head=_embedding(teacher))
    s, t = (_similarities(x, len(labels)) for x in heads)
    t = jax.lax.stop_gradient(t)
    return _kl(t, s, temperature, keep(t, _repeat(jnp.arange(len(labels))), kept))


TERMS: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (dkd, fitnet, at, sp, cc, vid, rkd, pkt, crd, sskd_head, sskd_kl, sskd_ss)
}
