"""torchvision's names of the parameters of ConvNeXt."""

from collections.abc import Sequence

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_IN_BLOCK = {"conv": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}


def key(module: Sequence[str], leaf: str) -> str:
    """The state-dict key of a parameter, see `torch_names.KEYS`."""
    part, *rest = module
    if part == "stem":
        return f"features.0.{('conv1', 'norm').index(rest[0])}.{_LEAVES[leaf]}"
    if part == "head":
        return f"classifier.{('norm', '', 'fc').index(rest[0])}.{_LEAVES[leaf]}"
    # Stage l is 'features.{2l - 1}', and the downsampling layers in front of it are one entry of their own.
    position = 2 * int(part.removeprefix("stage")) - 1
    if not rest[0].startswith("block"):
        return f"features.{position - 1}.{('norm', 'conv').index(rest[0])}.{_LEAVES[leaf]}"
    block = f"features.{position}.{rest[0].removeprefix('block')}"
    return f"{block}.{leaf}" if leaf == "layer_scale" else f"{block}.{_IN_BLOCK[rest[1]]}.{_LEAVES[leaf]}"
