"""torchvision's names of the layers of DenseNets and of VGGs for ImageNet."""

from collections.abc import Sequence

from hsakd_jax.models import vgg


def densenet(module: Sequence[str]) -> str:
    """The name of a layer of a DenseNet, by its path, such as ('stage2', 'layer0', 'conv1')."""
    part, *rest = module
    if part == "head":
        return {"bn1": "features.norm5", "fc": "classifier"}[rest[0]]
    layer = rest[-1].replace("bn", "norm")
    if part == "stem":
        return f"features.{layer[:-1]}0"
    l = int(part.removeprefix("stage"))
    if rest[0] == "transition":
        return f"features.transition{l - 1}.{layer[:-1]}"
    return f"features.denseblock{l}.denselayer{int(rest[0].removeprefix('layer')) + 1}.{layer}"


def vgg_imagenet(name: str, module: Sequence[str]) -> str:
    """The name of a layer of a VGG with three linear layers, by its path, such as ('stage1', 'conv1')."""
    part, layer = module
    if part == "head":
        return {"hidden1": "classifier.0", "hidden2": "classifier.3", "fc": "classifier.6"}[layer]
    stem, stages, *_ = vgg.NETWORKS[name]()
    depths = [len(block.keywords["widths"]) for block in (stem, *stages) if block]
    block = 0 if part == "stem" else int(part.removeprefix("stage"))
    kind, number = layer[:-1], int(layer[-1])
    # One Sequential: each convolution has a BatchNorm and a ReLU, and each block ends with a pool.
    return f"features.{sum(3 * depth + 1 for depth in depths[:block]) + 3 * (number - 1) + (kind == 'bn')}"
