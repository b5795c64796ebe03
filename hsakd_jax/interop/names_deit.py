"""timm's names of the parameters of vision transformers."""

from collections.abc import Sequence

from hsakd_jax.models import deit

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STEM = {"class_token": "cls_token", "position_embedding": "pos_embed"}
_IN_BLOCK = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def key(module: Sequence[str], leaf: str) -> str:
    """The state-dict key of a parameter, see `torch_names.KEYS`."""
    part, *rest = module
    if part == "stem":
        return f"patch_embed.proj.{_LEAVES[leaf]}" if rest else _STEM[leaf]
    if part == "head":
        return f"{'head' if rest[0] == 'fc' else rest[0]}.{_LEAVES[leaf]}"
    block, layer = rest
    number = deit.DEPTH * (int(part.removeprefix("stage")) - 1) + int(block.removeprefix("block"))
    return f"blocks.{number}.{_IN_BLOCK.get(layer, layer)}.{_LEAVES[leaf]}"
