"""Writes method_steps.json: the training steps of `method_steps.CASES` in PyTorch, float64, on CPU.

    python -m tests.golden.make_method_steps [CASE ...]

It shares the cases and their inputs with the test, and no other code. Losses follow the papers and the notes of
methods.json; optimiser, schedule, BatchNorm and gradients are PyTorch's own. Modules have the names of our parameters.
Named cases replace those of the file, and the others stay.
"""

import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import method_steps as spec

(_, _, STUDENT), (_, _, TEACHER) = spec.STUDENT_WIDTHS, spec.TEACHER_WIDTHS  # channels of the last maps


class Outputs(NamedTuple):
    """Class logits, the map after each stage, the same before its last ReLU, and the last map, pooled or not."""

    logits: Tensor
    maps: list[Tensor]
    before_relu: list[Tensor]
    last_map: Tensor

    @property
    def embedding(self) -> Tensor:
        return self.last_map.mean((2, 3))


class Step(NamedTuple):
    """All that a term takes: the outputs of both networks, the batch, and the modules of its own by name."""

    student: Outputs
    teacher: Outputs
    labels: Tensor
    index: Tensor
    own: nn.Module


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


# Networks.


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.projects = stride > 1 or channels != features
        if self.projects:
            self.shortcut_conv = nn.Conv2d(channels, features, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        """The result before its ReLU."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return y + (self.shortcut_bn(self.shortcut_conv(x)) if self.projects else x)


class Network(nn.Module):
    """A ResNet of two stages of one block."""

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__()
        stem, first, second = widths
        self.stem = named(conv1=nn.Conv2d(3, stem, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(stem), relu=nn.ReLU())
        self.stage1 = named(block0=Block(stem, first, 1))
        self.stage2 = named(block0=Block(first, second, 2))
        self.head = named(fc=nn.Linear(second, spec.NUM_CLASSES))

    def forward(self, images: Tensor) -> Outputs:
        first = self.stage1(self.stem(images))
        second = self.stage2(F.relu(first))
        maps = [F.relu(first), F.relu(second)]
        last_map = self.last_map(maps[-1])
        return Outputs(self.head.fc(last_map.mean((2, 3))), maps, [first, second], last_map)

    def last_map(self, x: Tensor) -> Tensor:
        return x


class Projected(Network):
    """SimKD's student: convolutions to the teacher's channels, of which the first two have half, and its last layer."""

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__(widths)
        channels = (STUDENT, TEACHER // 2, TEACHER // 2, TEACHER)
        layers: dict[str, nn.Module] = {}
        for i, kernel in enumerate((1, 3, 1), 1):
            layers[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], kernel, 1, kernel // 2, bias=False)
            layers |= {f"bn{i}": nn.BatchNorm2d(channels[i]), f"relu{i}": nn.ReLU()}
        self.head = named(**layers, fc=nn.Linear(TEACHER, spec.NUM_CLASSES))

    def last_map(self, x: Tensor) -> Tensor:
        return self.head[:-1](x)


# Terms, unweighted.


def upright(x: Tensor) -> Tensor:
    """The upright rows: those of an image are neighbours, the upright one first."""
    return x.unflatten(0, (spec.BATCH, -1))[:, 0]


def rotated(x: Tensor) -> Tensor:
    return x.unflatten(0, (spec.BATCH, 4))[:, 1:].flatten(0, 1)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton's: T^2 KL(teacher || student), mean over rows."""
    log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def task(step: Step) -> Tensor:
    return F.cross_entropy(upright(step.student.logits), step.labels)


def kl(step: Step, temperature: float, upright_only: bool = False) -> Tensor:
    del upright_only  # other rows exist in SSKD's batches only, where it is true
    return softened_kl(upright(step.student.logits), upright(step.teacher.logits), temperature)


def wttm(step: Step, gamma: float) -> Tensor:
    """Each image weighs the sum of the teacher's transformed probabilities before they are normalised."""
    power = F.softmax(step.teacher.logits, 1) ** gamma
    total = power.sum(1)
    log_q = F.log_softmax(step.student.logits, 1)
    return (total * F.kl_div(log_q, power / total[:, None], reduction="none").sum(1)).mean()


def dkd(step: Step, alpha: float, beta: float, temperature: float) -> Tensor:
    """T^2 (alpha KL of target against the rest + beta KL within the rest)."""
    target = F.one_hot(step.labels, spec.NUM_CLASSES).bool()
    q, p = (F.softmax(x.logits / temperature, 1) for x in (step.student, step.teacher))
    q_target, p_target = q[target][:, None], p[target][:, None]  # one of each row
    q_rest, p_rest = (x[~target].unflatten(0, (spec.BATCH, -1)) for x in (q, p))
    of_target = divergence(torch.cat([p_target, 1 - p_target], 1), torch.cat([q_target, 1 - q_target], 1))
    within_rest = divergence(p_rest / p_rest.sum(1, keepdim=True), q_rest / q_rest.sum(1, keepdim=True))
    return temperature**2 * (alpha * of_target + beta * within_rest)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(1).mean()


def fitnet(step: Step, stage: int, maps: str) -> Tensor:
    assert maps == "hints"  # of ResNets those after the stages
    return F.mse_loss(step.own.fitnet(step.student.maps[stage - 1]), step.teacher.maps[stage - 1])


def regressor() -> nn.Module:
    """To the channels of the teacher's last map, which has the size of the student's."""
    return named(conv=nn.Conv2d(STUDENT, TEACHER, 1), bn=nn.BatchNorm2d(TEACHER), relu=nn.ReLU())


def vid(step: Step, maps: str) -> Tensor:
    """-log N(teacher's map; mean, variance of the channel), without its constant, mean over all elements."""
    assert maps == "hints"
    total = torch.zeros(())
    for stage, (x, y) in enumerate(zip(step.student.maps, step.teacher.maps, strict=True), 1):
        for i in (1, 2, 3):
            x = step.own.vid.get_submodule(f"stage{stage}_conv{i}")(F.relu(x) if i > 1 else x)
        scale = step.own.vid.get_parameter(f"stage{stage}_log_scale")
        variance = torch.log1p(torch.exp(scale)) + 1e-5
        variance = variance[:, None, None]
        total = total + 0.5 * ((y - x) ** 2 / variance + torch.log(variance)).mean()
    return total


def gaussians() -> nn.Module:
    own = nn.Module()
    for stage, (x, y) in enumerate(zip(spec.STUDENT_WIDTHS[1:], spec.TEACHER_WIDTHS[1:], strict=True), 1):
        for i in (1, 2, 3):
            own.add_module(f"stage{stage}_conv{i}", nn.Conv2d(x if i == 1 else y, y, 1, bias=False))
        own.register_parameter(f"stage{stage}_log_scale", nn.Parameter(torch.zeros(y)))
    return own


def cc(step: Step) -> Tensor:
    """The inner product of each image's |difference| with that of the next one."""
    delta = (step.own.cc.student(step.student.embedding) - step.own.cc.teacher(step.teacher.embedding)).abs()
    return (delta[1:] * delta[:-1]).sum(1).mean()


def projections() -> nn.Module:
    return named(student=nn.Linear(STUDENT, 128), teacher=nn.Linear(TEACHER, 128))


def crd(step: Step, negatives: int, temperature: float) -> Tensor:
    """-E log h(own image) - N E log (1 - h(negative)), h = s / (s + N / n), s = exp(cosine / T) / Z."""
    drawn = torch.from_numpy(spec.negatives()).long()[step.index]
    rows = torch.cat([step.index[:, None], drawn], 1)  # the own image first
    noise = negatives / spec.IMAGES
    own, total = step.own.crd, torch.zeros(())
    anchors = {
        "student": F.normalize(own.student(step.student.embedding)),
        "teacher": F.normalize(own.teacher(step.teacher.embedding)),
    }
    for side, other in (("student", "teacher"), ("teacher", "student")):
        remembered = own.get_buffer(f"{other}_bank")[rows].detach().clone()
        scores = torch.exp(torch.einsum("bd,bkd->bk", anchors[side], remembered) / temperature)
        z = own.get_buffer(f"{side}_z")
        if not z:  # the first batch sets it
            z.copy_(spec.IMAGES * scores.detach().mean())
        scores = scores / z
        right = torch.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7))
        wrong = torch.log(noise / (scores[:, 1:] + noise + 1e-7))
        total = total - (right.sum() + wrong.sum()) / spec.BATCH
    for side, anchor in anchors.items():
        bank = own.get_buffer(f"{side}_bank")
        bank[step.index] = F.normalize(0.5 * bank[step.index] + 0.5 * anchor.detach())
    return total


def contrast() -> nn.Module:
    own = projections()
    for side in ("student", "teacher"):
        own.register_buffer(f"{side}_bank", torch.zeros(spec.IMAGES, 128))
        own.register_buffer(f"{side}_z", torch.zeros(()))
    return own


def ofa(step: Step, gamma: float, temperature: float) -> Tensor:
    """Of the class logits and of each exit: -sum ((p + target)^gamma - target) log q."""
    logits = [step.student.logits, *(x(y) for x, y in zip(step.own.ofa, step.student.maps, strict=True))]
    target = F.one_hot(step.labels, spec.NUM_CLASSES)
    weights = (F.softmax(step.teacher.logits / temperature, 1) + target) ** gamma - target
    return sum(-(weights * F.log_softmax(x / temperature, 1)).sum(1).mean() for x in logits)


def exits() -> nn.Module:
    """The first map, which one stage follows, passes a separable convolution; the last one a 1x1 convolution."""
    width, (_, first, second) = max(STUDENT, TEACHER), spec.STUDENT_WIDTHS
    separable = named(
        depthwise1=nn.Conv2d(first, first, 3, 2, 1, groups=first, bias=False),
        pointwise1=nn.Conv2d(first, first, 1, bias=False),
        bn1=nn.BatchNorm2d(first),
        relu1=nn.ReLU(),
        depthwise2=nn.Conv2d(first, first, 3, 1, 1, groups=first, bias=False),
        pointwise2=nn.Conv2d(first, width, 1, bias=False),
        bn2=nn.BatchNorm2d(width),
        relu2=nn.ReLU(),
    )

    def tail() -> dict[str, nn.Module]:
        layers = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(width, spec.NUM_CLASSES)}
        return layers

    return named(stage1=named(conv1=separable, **tail()), stage2=named(conv=nn.Conv2d(second, width, 1), **tail()))


def wkd_f(step: Step, ratio: float, grid: int, projector: str) -> Tensor:
    """Distances of means and of standard deviations of each channel over the whole map: a grid of 1."""
    assert (grid, projector) == (1, "regressor")
    x, y = step.own.wkd_f(step.student.maps[-1]).flatten(2), step.teacher.maps[-1].flatten(2)
    means = ((x.mean(2) - y.mean(2)) ** 2).sum(1).mean()
    x, y = ((z.var(2, unbiased=True) + 1e-5).sqrt() for z in (x, y))
    return ratio * means + ((x - y) ** 2).sum(1).mean()


def reviewkd(step: Step, max_channels: int, preactivation: bool) -> Tensor:
    """From the embedding back to the first stage: each level is fused with the one before, then compared."""
    assert not preactivation  # of the student
    assert max_channels > STUDENT
    student = [step.student.embedding[:, :, None, None], *reversed(step.student.maps)]
    teacher = [step.teacher.embedding[:, :, None, None], *reversed(step.teacher.before_relu)]
    total, deeper = torch.zeros(()), None
    for level, x, y in zip(step.own.reviewkd.children(), student, teacher, strict=True):
        x = level.bn1(level.conv1(x))
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            own, other = torch.sigmoid(level.attention(torch.cat([x, deeper], 1))).split(1, 1)
            x = own * x + other * deeper
        deeper = F.interpolate(x, y.shape[2:], mode="nearest")
        total = total + hierarchical(level.bn2(level.conv2(deeper)), y)
    return total


def hierarchical(x: Tensor, y: Tensor) -> Tensor:
    """Squared errors at full size and pooled to 4, 2 and 1, each with half the weight of the one before."""
    sizes = [x.shape[2], *(size for size in (4, 2, 1) if size < x.shape[2])]
    pooled = [(F.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(y, size)) for size in sizes]
    weights = [0.5**i for i in range(len(sizes))]
    return sum(w * F.mse_loss(*pair) for w, pair in zip(weights, pooled, strict=True)) / sum(weights)


def levels() -> nn.Module:
    own, width = nn.Module(), STUDENT  # of the fused maps
    channels = {"pooled": (STUDENT, TEACHER)}
    for stage in (2, 1):
        channels[f"stage{stage}"] = spec.STUDENT_WIDTHS[stage], spec.TEACHER_WIDTHS[stage]
    for name, (x, y) in channels.items():
        layers = {
            "conv1": nn.Conv2d(x, width, 1, bias=False),
            "bn1": nn.BatchNorm2d(width),
            "conv2": nn.Conv2d(width, y, 3, 1, 1, bias=False),
            "bn2": nn.BatchNorm2d(y),
        }
        if name != "pooled":
            layers["attention"] = nn.Conv2d(2 * width, 2, 1)
        own.add_module(name, named(**layers))
    return own


def simkd(step: Step) -> Tensor:
    return F.mse_loss(step.student.last_map, step.teacher.last_map)


def similarities(x: Tensor) -> Tensor:
    """Cosines of each rotated row with each upright one."""
    x = F.normalize(x)
    return rotated(x) @ upright(x).T


def of_rotated(x: Tensor) -> Tensor:
    return x.repeat_interleave(3)


def sskd_head(step: Step) -> Tensor:
    """The network that trains is the teacher: its head tells from which image a rotated one was made."""
    scores = similarities(step.own.sskd.teacher_head(step.student.embedding.detach()))
    return F.cross_entropy(scores, of_rotated(torch.arange(spec.BATCH)))


def sskd_kl(step: Step, temperature: float, kept: float) -> Tensor:
    student, teacher = rotated(step.student.logits), rotated(step.teacher.logits)
    rows = trusted(teacher, of_rotated(step.labels), kept)
    return softened_kl(student[rows], teacher[rows], temperature)


def sskd_ss(step: Step, temperature: float, kept: float) -> Tensor:
    student = similarities(step.own.sskd.student_head(step.student.embedding))
    teacher = similarities(step.own.sskd.teacher_head(step.teacher.embedding)).detach()
    rows = trusted(teacher, of_rotated(torch.arange(spec.BATCH)), kept)
    return softened_kl(student[rows], teacher[rows], temperature)


def trusted(scores: Tensor, targets: Tensor, kept: float) -> Tensor:
    """Rows whose target has the highest score, and of the others the fraction `kept` whose target ranks best."""
    place = scores.argsort(1, descending=True).argsort(1).gather(1, targets[:, None])[:, 0]
    wrong = int((place > 0).sum())
    return place.argsort(stable=True)[: len(place) - wrong + math.floor(kept * wrong)].sort()[0]


def head(width: int) -> nn.Module:
    return named(fc1=nn.Linear(width, width), relu=nn.ReLU(), fc2=nn.Linear(width, width))


TERMS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (task, kl, wttm, dkd, fitnet, vid, cc, crd, ofa, reviewkd, simkd, wkd_f, sskd_head, sskd_kl, sskd_ss)
}
# The modules of a term's own, under the name that we have for them.
OWN: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "fitnet": lambda: {"fitnet": regressor()},
    "vid": lambda: {"vid": gaussians()},
    "cc": lambda: {"cc": projections()},
    "crd": lambda: {"crd": contrast()},
    "ofa": lambda: {"ofa": exits()},
    "reviewkd": lambda: {"reviewkd": levels()},
    "wkd_f": lambda: {"wkd_f": regressor()},
    "sskd_head": lambda: {"sskd": named(teacher_head=head(TEACHER))},
    "sskd_ss": lambda: {"sskd": named(student_head=head(STUDENT), teacher_head=head(TEACHER))},
}


# Layouts: PyTorch's tensors by our names.


def tensors(root: nn.Module) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """Our path of each parameter and buffer, the tensor, the way to our layout and the way back."""
    for where, module in root.named_modules():
        for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            leaf, ours, theirs = name, torch.Tensor.clone, torch.Tensor.clone
            if isinstance(module, nn.BatchNorm2d):
                leaf = {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(name, name)
            elif isinstance(module, nn.Conv2d) and name == "weight":
                leaf, ours, theirs = "kernel", lambda x: x.permute(2, 3, 1, 0), lambda x: x.permute(3, 2, 0, 1)
            elif isinstance(module, nn.Linear) and name == "weight":
                leaf, ours, theirs = "kernel", torch.Tensor.t, torch.Tensor.t
            if leaf != "num_batches_tracked":
                yield f"{where}.{leaf}".replace(".", "/"), x, ours, theirs


def fill(root: nn.Module, network: str) -> None:
    with torch.no_grad():
        for path, x, ours, theirs in tensors(root):
            x.copy_(theirs(torch.from_numpy(spec.start(network, path, tuple(ours(x).shape)))))


# The steps.


def factor(epoch: int, warmup: int = 0, decay: int | None = None, **_: Any) -> float:
    """Of a weight, in an epoch counted from 1."""
    grown = min(1.0, epoch / warmup) if warmup else 1.0
    if decay is None or epoch <= decay:
        return grown
    return grown * 0.5 * (1 + math.cos(math.pi * (epoch - decay) / (spec.EPOCHS - decay)))


def steps_of(case: spec.Case) -> list[dict[str, Any]]:
    student = (Projected if case.projects else Network)(spec.STUDENT_WIDTHS)
    teacher = Network(spec.TEACHER_WIDTHS)
    network = student if case.trains == "student" else teacher
    network.objective = nn.Module()
    for term in case.terms:
        for name, module in OWN.get(term, dict)().items():
            network.objective.add_module(name, module)
    for each, name in ((student, "student"), (teacher, "teacher")):
        fill(each, name)
    teacher.eval()
    network.train(not case.fixed or case.trains == "student")

    learns = [p for name, p in network.named_parameters() if not name.replace(".", "/").startswith(case.fixed or "/")]
    optimizer = torch.optim.SGD(learns, spec.LR, momentum=spec.MOMENTUM, weight_decay=spec.WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [spec.MILESTONE], spec.GAMMA)
    images, labels = spec.images(), torch.from_numpy(spec.classes()).long()
    rotates = case.recipe.startswith("sskd")
    found = []
    for t in range(spec.STEPS):
        epoch, index = t // spec.STEPS_PER_EPOCH + 1, torch.from_numpy(spec.index(t)).long()
        batch = torch.from_numpy((images / 255 - spec.MEAN) / spec.STD).permute(0, 3, 1, 2)[index]
        if rotates:
            batch = torch.stack([batch.rot90(j, (2, 3)) for j in range(4)], 1).flatten(0, 1)
        with torch.no_grad():
            taught = teacher(batch)
        step = Step(network(batch), taught, labels[index], index, network.objective)
        terms, loss = {}, torch.zeros(())
        for name, options in case.terms.items():
            given = {key: value for key, value in options.items() if key not in ("weight", "warmup", "decay")}
            terms[name] = TERMS[name](step, **given)
            loss = loss + options["weight"] * factor(epoch, **options) * terms[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (t + 1) % spec.STEPS_PER_EPOCH == 0:
            schedule.step()
        arrays = {path: spec.figure(path, ours(x.detach()).numpy()) for path, x, ours, _ in tensors(network)}
        values = {name: value.item() for name, value in terms.items()}
        norm = sum((p.grad**2).sum() for p in learns).sqrt().item()
        found.append({**values, "loss": loss.item(), "grad_norm": norm, **arrays})
    return found


def main(names: list[str]) -> None:
    torch.set_default_dtype(torch.float64)
    figures = spec.read() if names else {}
    figures |= {name: steps_of(spec.CASES[name]) for name in names or spec.CASES}
    lines = (f"{json.dumps(name)}: {json.dumps(figures[name])}" for name in spec.CASES)
    spec.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
