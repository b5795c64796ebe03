"""A small network of the modules of each family of torchvision and timm, for images of 32x32 and more."""

from functools import partial

from hsakd_jax.models import convnext, deit, densenet, efficientnet, mobilenet_imagenet, regnet, resnet, vgg


def _cut(architecture):
    """The first two blocks of the first stage, and the first block of each other one, which the branches repeat."""
    stages = (
        partial(stage, blocks=stage.keywords["blocks"][: 2 if l == 0 else 1])
        for l, stage in enumerate(architecture.stages)
    )
    return architecture._replace(stages=tuple(stages))


def _mobilenet_v1():
    full = mobilenet_imagenet.v1()
    return full._replace(stages=tuple(partial(stage, depth=1) for stage in full.stages))


RESNEXT = partial(resnet.Bottleneck, width=2, groups=32)
# Keys are the beginnings of the names of the networks.
SMALL = {
    "resnext": resnet.resnet(RESNEXT, (1,) * 4, (32,) * 4, resnet.ImageNetStem),
    "densenet": densenet.densenet(2, 1, 1, 1),
    "vgg": vgg.vgg_imagenet(1, 1, 1, 1, 1)._replace(head=partial(vgg.Classifier, hidden=64)),
    "mobilenetv1": _mobilenet_v1(),
    "mobilenet_v2": _cut(mobilenet_imagenet.v2()),
    "mobilenet_v3": _cut(mobilenet_imagenet.v3(mobilenet_imagenet.V3_SMALL, 1024)),
    "efficientnet": _cut(efficientnet.efficientnet(0.5, 0.5, 224)),
    "regnet": regnet.regnet_y((2, 1, 1, 1), (16, 24, 32, 48), 8),
    "convnext": convnext.convnext((1, 1, 1), (8, 16, 24)),
    "deit": deit.deit(32, 2)._replace(stages=(partial(deit.Stage, depth=1, heads=2),) * 3),
}
