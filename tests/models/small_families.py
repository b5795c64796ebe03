"""Small networks of the modules of each family of torchvision and timm, for images of 32x32 and more."""

from functools import partial

from hsakd_jax.models import convnext, deit, densenet, efficientnet, mobilenet, mobilenet_imagenet, regnet, resnet, vgg
from hsakd_jax.models.mobilenet_imagenet import Row


def _resnet(**options):
    block = partial(resnet.Bottleneck, **options)
    return resnet.resnet(block, (1,) * 4, (32,) * 4, resnet.ImageNetStem)


def _mobilenet_v1():
    blocks = partial(resnet.Stage, block=mobilenet_imagenet.DepthwiseSeparable, depth=1, stride=2)
    return mobilenet_imagenet.v1()._replace(stages=tuple(partial(blocks, features=width) for width in (16, 24, 32, 48)))


def _mobilenet_v2():
    full = mobilenet_imagenet.v2()
    options = full.stages[0].keywords["blocks"][0].keywords
    stages = (
        mobilenet.inverted_residuals([(6, width, 2, 2)], activation=options["activation"]) for width in (8, 12, 16, 24)
    )
    return full._replace(stages=tuple(stages), head=partial(full.head, features=64))


V3 = (
    (),
    (Row(3, 16, 16, True, False, 2),),
    (Row(3, 72, 24, False, False, 2), Row(3, 88, 24, False, False, 1)),
    (Row(5, 96, 40, True, True, 2),),
    (Row(5, 144, 48, True, True, 2), Row(5, 144, 48, True, True, 1)),
)
# Keys are the beginnings of the names of the networks.
SMALL = {
    "resnext": _resnet(width=2, groups=32),
    "wide_resnet": _resnet(width=2),
    "densenet": densenet.densenet(2, 1, 1, 1),
    "vgg": vgg.vgg_imagenet(1, 1, 1, 1, 1)._replace(head=partial(vgg.Classifier, hidden=64)),
    "mobilenetv1": _mobilenet_v1(),
    "mobilenet_v2": _mobilenet_v2(),
    "mobilenet_v3": mobilenet_imagenet.v3(V3, 32),
    "efficientnet": efficientnet.efficientnet(0.25, 0.25, 224),
    "regnet": regnet.regnet_y((1, 2, 1, 1), (16, 24, 32, 48), 8),
    "convnext": convnext.convnext((1, 1, 1), (8, 16, 24)),
    "deit": deit.deit(32, 2)._replace(stages=(partial(deit.Stage, depth=1, heads=2),) * 3),
}
