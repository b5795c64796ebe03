"""The paper's networks in plain PyTorch, with the state-dict keys of the published checkpoints.

They are what our exported weights must load into, and the baseline of the speed benchmarks. Weights start as PyTorch's
layers do. One rule makes all auxiliary classifiers: branch l is fresh copies of the stages after l (or the last stage
once more at stride 1), then the backbone's own head with 4N outputs.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTATIONS = 4


def conv(channels: int, features: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Square convolution without bias, padded by kernel // 2."""
    return nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False)


def conv_bn(channels: int, features: int, *args, **kwargs) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Convolution (arguments as `conv`) and BatchNorm."""
    return conv(channels, features, *args, **kwargs), nn.BatchNorm2d(features)


def conv_bn_relu(*args, **kwargs) -> nn.Sequential:
    """Convolution (arguments as `conv`), BatchNorm, ReLU."""
    return nn.Sequential(*conv_bn(*args, **kwargs), nn.ReLU(inplace=True))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle: the channels seen as [groups, C / groups] and transposed."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class Backbone(nn.Module):
    """Stem, L stages 'layer{l}' and head; a family overrides what it does differently.

    Attributes:
      last: name of the last layer.
      neck_name: what a branch calls its head's layers before the pool, '{}' standing for l.
      num_features: channels that the last layer takes.
    """

    last = "fc"
    neck_name = "neck{}"

    def __init__(self, block: Callable[..., nn.Module], depths, widths, strides, num_features: int | None = None):
        """Notes the recipe of the stages; `widths` are the channels before stage 1 and after each stage."""
        super().__init__()
        self.block, self.depths, self.widths, self.strides = block, depths, widths, strides
        self.num_features = num_features or widths[-1]

    def stage(self, l: int, channels: int, stride: int) -> list[nn.Module]:
        """Fresh layers of stage l, to be put in a row."""
        features = self.widths[l]
        blocks = (self.block(features, features, 1) for _ in range(self.depths[l - 1] - 1))
        return [nn.Sequential(self.block(channels, features, stride), *blocks)]

    def stages(self, after: int = 0) -> list[nn.Module]:
        """Fresh layers of all stages after the given one."""
        rest = range(after, len(self.strides))
        return [layer for l in rest for layer in self.stage(l + 1, self.widths[l], self.strides[l])]

    def branch(self, l: int) -> nn.Sequential:
        """Fresh stages of branch l."""
        last = len(self.strides)
        return nn.Sequential(*(self.stage(last, self.widths[last], 1) if l == last else self.stages(l)))

    def neck(self) -> nn.Module:
        """Fresh layers of the head before the pool."""
        return nn.Identity()

    def add_stages(self) -> None:
        """Makes the backbone's own stages."""
        for l, layer in enumerate(self.stages(), 1):
            self.add_module(f"layer{l}", layer)

    def stem(self, images: Tensor) -> Tensor:
        """What stage 1 takes."""
        return F.relu(self.bn1(self.conv1(images)), inplace=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps after each stage."""
        x, maps = self.stem(images), []
        for l in range(1, len(self.strides) + 1):
            x = getattr(self, f"layer{l}")(x)
            maps.append(x)
        return maps

    def head(self, x: Tensor) -> Tensor:
        """Class logits from the last map."""
        return getattr(self, self.last)(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class logits, and no auxiliary logits."""
        return self.head(self.maps(images)[-1]), []


class AuxiliaryClassifiers(nn.Module):
    """One branch for each stage of the backbone."""

    def __init__(self, backbone: Backbone, num_outputs: int):
        super().__init__()
        branches = range(1, len(backbone.strides) + 1)
        self.neck_name = backbone.neck_name
        # Three loops give the checkpoints' order.
        for l in branches:
            self.add_module(f"block_extractor{l}", backbone.branch(l))
        for l in branches:
            self.add_module(self.neck_name.format(l), backbone.neck())
        for l in branches:
            self.add_module(f"fc{l}", nn.Linear(backbone.num_features, num_outputs))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Joint logits of class and rotation from the map after each stage."""
        logits = []
        for l, x in enumerate(maps, 1):
            x = getattr(self, self.neck_name.format(l))(getattr(self, f"block_extractor{l}")(x))
            logits.append(getattr(self, f"fc{l}")(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return logits


class Network(nn.Module):
    """Backbone and auxiliary classifiers."""

    def __init__(self, backbone: Backbone, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.auxiliary_classifier = AuxiliaryClassifiers(backbone, ROTATIONS * num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class logits, and the joint logits of each branch."""
        maps = self.backbone.maps(images)
        return self.backbone.head(maps[-1]), self.auxiliary_classifier(maps)


def projection(channels: int, features: int, stride: int) -> nn.Sequential:
    """Shortcut of a residual block: empty, the identity, where the shape is kept."""
    if stride == 1 and channels == features:
        return nn.Sequential()
    return nn.Sequential(*conv_bn(channels, features, 1, stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, features, 3, stride)
        self.conv2, self.bn2 = conv_bn(features, features, 3)
        self.downsample = projection(channels, features, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, and 1x1 convolutions, four times narrower inside."""

    def __init__(self, channels: int, features: int, stride: int, shortcut: str = "downsample"):
        super().__init__()
        hidden = features // 4
        self.conv1, self.bn1 = conv_bn(channels, hidden, 1)
        self.conv2, self.bn2 = conv_bn(hidden, hidden, 3, stride)
        self.conv3, self.bn3 = conv_bn(hidden, features, 1)
        self.shortcut_name = shortcut
        self.add_module(shortcut, projection(channels, features, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += getattr(self, self.shortcut_name)(x)
        return F.relu(y, inplace=True)


class ResNet(Backbone):
    """ResNet; with `imagenet` its stem has a 7x7/2 convolution and a max-pool."""

    def __init__(self, num_classes: int, block, depths, widths, imagenet: bool = False, last: str = "fc"):
        super().__init__(block, depths, widths, (1, 2, 2, 2)[: len(depths)])
        self.imagenet, self.last = imagenet, last
        self.conv1, self.bn1 = conv_bn(3, widths[0], *((7, 2) if imagenet else (3,)))
        self.add_stages()
        self.add_module(last, nn.Linear(self.num_features, num_classes))

    def stem(self, images: Tensor) -> Tensor:
        x = super().stem(images)
        return F.max_pool2d(x, 3, 2, 1) if self.imagenet else x


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; a projection takes the activated input, the identity the raw one."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, features, 3, stride)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = conv(features, features, 3)
        self.convShortcut = conv(channels, features, 1, stride) if channels != features else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        y = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        return self.conv2(y) + (self.convShortcut(activated) if self.convShortcut else x)


class BatchNormReLU(nn.BatchNorm2d):
    """BatchNorm and ReLU under one name."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input), inplace=True)


class WideResNet(Backbone):
    """WRN-depth-width."""

    neck_name = "bn{}"

    def __init__(self, num_classes: int, depth: int, width: int):
        widths = 16, 16 * width, 32 * width, 64 * width
        super().__init__(PreActivationBlock, ((depth - 4) // 6,) * 3, widths, (1, 2, 2))
        self.conv1 = conv(3, 16, 3)
        self.block1, self.block2, self.block3 = self.stages()
        self.bn1 = self.neck()
        self.fc = nn.Linear(self.num_features, num_classes)

    def stage(self, l: int, channels: int, stride: int) -> list[nn.Module]:
        (blocks,) = super().stage(l, channels, stride)
        stage = nn.Sequential()
        stage.add_module("layer", blocks)
        return [stage]

    def neck(self) -> nn.Module:
        return BatchNormReLU(self.num_features)

    def maps(self, images: Tensor) -> list[Tensor]:
        x1 = self.block1(self.conv1(images))
        x2 = self.block2(x1)
        return [x1, x2, self.block3(x2)]

    def head(self, x: Tensor) -> Tensor:
        return super().head(self.bn1(x))


def vgg_block(channels: int, features: int, depth: int) -> nn.Sequential:
    """3x3 convolutions, BatchNorms and ReLUs but for the last ReLU."""
    layers = []
    for i in range(depth):
        convolution = nn.Conv2d(features if i else channels, features, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class VGG(Backbone):
    """VGG with BatchNorm: five blocks, the last two of them one stage, max-pools before all stages but the first."""

    last = "classifier"

    def __init__(self, num_classes: int, *depths: int):
        super().__init__(vgg_block, depths, (3, 64, 128, 256, 512), (1, 2, 2, 2))
        blocks = (layer for layer in self.stages() if isinstance(layer, nn.Sequential))
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        self.classifier = nn.Linear(512, num_classes)

    def stage(self, l: int, channels: int, stride: int) -> list[nn.Module]:
        layers = [nn.MaxPool2d(2)] if stride == 2 else []
        layers += [vgg_block(channels, self.widths[l], self.depths[l - 1]), nn.ReLU(inplace=True)]
        if l == 4:
            layers += [vgg_block(512, 512, self.depths[4]), nn.ReLU(inplace=True)]
        return layers

    def maps(self, images: Tensor) -> list[Tensor]:
        x1 = F.relu(self.block0(images), inplace=True)
        x2 = F.relu(self.block1(F.max_pool2d(x1, 2)), inplace=True)
        x3 = F.relu(self.block2(F.max_pool2d(x2, 2)), inplace=True)
        x4 = F.relu(self.block3(F.max_pool2d(x3, 2)), inplace=True)
        return [x1, x2, x3, F.relu(self.block4(x4), inplace=True)]


class InvertedResidual(nn.Module):
    """1x1 expansion (also at expansion 1), 3x3 depthwise, linear 1x1; a shortcut where the shape is kept."""

    def __init__(self, channels: int, features: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * channels
        self.shortcut = stride == 1 and channels == features
        self.conv = nn.Sequential(
            *conv_bn_relu(channels, hidden, 1),
            *conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            *conv_bn(hidden, features, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(Backbone):
    """MobileNetV2 of half width; `crd` is the variant of CRD, with a stem of stride 2 and 'classifier.0'."""

    last = "classifier"
    neck_name = "conv2_{}"
    # The stages' rows of (expansion, width, repeats).
    ROWS = (((1, 8, 1), (6, 12, 2)), ((6, 16, 3),), ((6, 32, 4), (6, 48, 3)), ((6, 80, 3), (6, 160, 1)))

    def __init__(self, num_classes: int, crd: bool = False):
        super().__init__(InvertedResidual, self.ROWS, (16, 12, 16, 48, 160), (1, 2, 2, 2), num_features=1280)
        self.conv1 = conv_bn_relu(3, 16, 3, stride=2 if crd else 1)
        self.blocks = nn.Sequential(*self.stages())
        self.conv2 = self.neck()
        linear = nn.Linear(self.num_features, num_classes)
        self.classifier = nn.Sequential(linear) if crd else linear

    def stage(self, l: int, channels: int, stride: int) -> list[nn.Module]:
        rows = []
        for expansion, features, repeats in self.ROWS[l - 1]:
            row = [InvertedResidual(channels, features, stride, expansion)]
            row += [InvertedResidual(features, features, 1, expansion) for _ in range(repeats - 1)]
            rows.append(nn.Sequential(*row))
            channels, stride = features, 1
        return rows

    def neck(self) -> nn.Module:
        return conv_bn_relu(self.widths[-1], self.num_features, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        row0, row1, row2, row3, row4, row5, row6 = self.blocks
        x1 = row1(row0(self.conv1(images)))
        x2 = row2(x1)
        x3 = row4(row3(x2))
        return [x1, x2, x3, row6(row5(x3))]

    def head(self, x: Tensor) -> Tensor:
        return super().head(self.conv2(x))


class BlockV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; the input is added, or pooled and concatenated at stride 2."""

    def __init__(self, channels: int, features: int, stride: int, groups: int = 3):
        super().__init__()
        features -= channels if stride == 2 else 0
        hidden = features // 4
        self.stride, self.groups = stride, 1 if channels == 24 else groups
        self.conv1, self.bn1 = conv_bn(channels, hidden, 1, groups=self.groups)
        self.conv2, self.bn2 = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.conv3, self.bn3 = conv_bn(hidden, features, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else y + x, inplace=True)


class ShuffleNetV1(Backbone):
    """ShuffleNetV1 with 3 groups."""

    last = "linear"

    def __init__(self, num_classes: int):
        super().__init__(BlockV1, (4, 8, 4), (24, 240, 480, 960), (2, 2, 2))
        self.conv1, self.bn1 = conv_bn(3, 24, 1)
        self.add_stages()
        self.linear = nn.Linear(self.num_features, num_classes)


class BlockV2(nn.Module):
    """One half of the channels passes, the other goes through 1x1, depthwise 3x3, 1x1; then a shuffle."""

    def __init__(self, features: int):
        super().__init__()
        half = features // 2
        self.conv1, self.bn1 = conv_bn(half, half, 1)
        self.conv2, self.bn2 = conv_bn(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_bn(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        y = F.relu(self.bn3(self.conv3(y)), inplace=True)
        return shuffle(torch.cat([passed, y], 1), 2)


class DownBlockV2(nn.Module):
    """Two convolved copies of the input, each half of the output, then a shuffle."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        half = features // 2
        self.conv1, self.bn1 = conv_bn(channels, channels, 3, stride, groups=channels)
        self.conv2, self.bn2 = conv_bn(channels, half, 1)
        self.conv3, self.bn3 = conv_bn(channels, half, 1)
        self.conv4, self.bn4 = conv_bn(half, half, 3, stride, groups=half)
        self.conv5, self.bn5 = conv_bn(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(self.conv1(x))
        a = F.relu(self.bn2(self.conv2(a)), inplace=True)
        b = F.relu(self.bn3(self.conv3(x)), inplace=True)
        b = self.bn4(self.conv4(b))
        b = F.relu(self.bn5(self.conv5(b)), inplace=True)
        return shuffle(torch.cat([a, b], 1), 2)


class ShuffleNetV2(Backbone):
    """ShuffleNetV2 with stages of the given widths."""

    last = "linear"

    def __init__(self, num_classes: int, *widths: int):
        super().__init__(BlockV2, (3, 7, 3), (24, *widths), (2, 2, 2), num_features=1024)
        self.conv1, self.bn1 = conv_bn(3, 24, 1)
        self.add_stages()
        self.conv2, self.bn2 = conv_bn(widths[-1], 1024, 1)
        self.linear = nn.Linear(1024, num_classes)

    def stage(self, l: int, channels: int, stride: int) -> list[nn.Module]:
        features = self.widths[l]
        blocks = (BlockV2(features) for _ in range(self.depths[l - 1]))
        return [nn.Sequential(DownBlockV2(channels, features, stride), *blocks)]

    def branch(self, l: int) -> nn.Sequential:
        # The checkpoints number the head's convolution among the branch's stages.
        return super().branch(l).extend(conv_bn_relu(self.widths[-1], 1024, 1))

    def head(self, x: Tensor) -> Tensor:
        return super().head(F.relu(self.bn2(self.conv2(x)), inplace=True))


def cifar_resnet(num_classes: int, depth: int, width: float = 1) -> ResNet:
    """ResNet of `depth` = 6n + 2 layers; four times wider ones have a stem of 32 channels."""
    widths = 32 if width == 4 else int(16 * width), int(16 * width), int(32 * width), int(64 * width)
    return ResNet(num_classes, BasicBlock, ((depth - 2) // 6,) * 3, widths)


BASIC_WIDTHS, BOTTLENECK_WIDTHS = (64, 64, 128, 256, 512), (64, 256, 512, 1024, 2048)
# ResNet-50 for CIFAR alone calls its projections 'shortcut' and its last layer 'linear'.
CIFAR_BOTTLENECK = partial(Bottleneck, shortcut="shortcut")

NETWORKS: dict[str, Callable[[int], Backbone]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(cifar_resnet, depth=8, width=4),
    "resnet32x4": partial(cifar_resnet, depth=32, width=4),
    "resnet8_quarter": partial(cifar_resnet, depth=8, width=0.25),
    "resnet8_half": partial(cifar_resnet, depth=8, width=0.5),
    "ResNet50": lambda n: ResNet(n, CIFAR_BOTTLENECK, (3, 4, 6, 3), BOTTLENECK_WIDTHS, last="linear"),
    "resnet18_imagenet": lambda n: ResNet(n, BasicBlock, (2, 2, 2, 2), BASIC_WIDTHS, imagenet=True),
    "resnet34_imagenet": lambda n: ResNet(n, BasicBlock, (3, 4, 6, 3), BASIC_WIDTHS, imagenet=True),
    "resnet50_imagenet": lambda n: ResNet(n, Bottleneck, (3, 4, 6, 3), BOTTLENECK_WIDTHS, imagenet=True),
    **{f"wrn_{d}_{w}": partial(WideResNet, depth=d, width=w) for d, w in ((16, 1), (16, 2), (40, 1), (40, 2))},
    "vgg8_bn": lambda n: VGG(n, 1, 1, 1, 1, 1),
    "vgg11_bn": lambda n: VGG(n, 1, 1, 2, 2, 2),
    "vgg13_bn": lambda n: VGG(n, 2, 2, 2, 2, 2),
    "vgg16_bn": lambda n: VGG(n, 2, 2, 3, 3, 3),
    "vgg19_bn": lambda n: VGG(n, 2, 2, 4, 4, 4),
    "mobilenetV2": MobileNetV2,
    "mobilenetV2_crd": partial(MobileNetV2, crd=True),
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": lambda n: ShuffleNetV2(n, 116, 232, 464),
    "ShuffleV2_0_5": lambda n: ShuffleNetV2(n, 48, 96, 192),
    "ShuffleV2_1_5": lambda n: ShuffleNetV2(n, 176, 352, 704),
}


def create(name: str, num_classes: int, branches: bool) -> nn.Module:
    """Makes a network in training mode; it maps NCHW images to (logits, list of L auxiliary logits).

    Args:
      name: a key of `NETWORKS`.
      num_classes: N.
      branches: whether it has auxiliary classifiers; the list is empty without them.
    """
    backbone = NETWORKS[name](num_classes)
    return Network(backbone, num_classes) if branches else backbone
