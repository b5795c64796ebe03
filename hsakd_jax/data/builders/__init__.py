"""The datasets that the package prepares itself, without TensorFlow: one builder per file.

A builder is a `tfds.core.GeneratorBasedBuilder` that yields PIL images or encoded ones (TFDS encodes arrays through
TensorFlow). It is not registered with TFDS, whose own `cifar10` must not change.
"""

from hsakd_jax.data.builders.cifar import Cifar10, Cifar100
from hsakd_jax.data.builders.digits import Digits
from hsakd_jax.data.builders.image_folder import ImageFolder
from hsakd_jax.data.builders.imagenet import Imagenet2012
from hsakd_jax.data.builders.stl10 import Stl10
from hsakd_jax.data.builders.tiny_imagenet import TinyImagenet

BUILDERS = {
    "digits": Digits,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "stl10": Stl10,
    "tiny_imagenet": TinyImagenet,
    "imagenet2012": Imagenet2012,
    "image_folder": ImageFolder,
}
