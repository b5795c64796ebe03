"""CIFAR-10 and CIFAR-100 as TFDS has them, from the published binary archives.

The binary archives hold bytes only. The better known `-python` ones are pickles, which execute their
content: they are never read.
"""

import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from hsakd_jax.core.console import with_progress
from hsakd_jax.data.builders.download import fetch, folder

_CITATION = """\
@TECHREPORT{Krizhevsky09learningmultiple,
    author = {Alex Krizhevsky},
    title = {Learning multiple layers of features from tiny images},
    institution = {},
    year = {2009}
}
"""
_IMAGE_BYTES = 3 * 32 * 32


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """50,000 training and 10,000 test images of 32x32 in 10 classes."""

    VERSION = tfds.core.Version("3.0.2")
    URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
    FOLDER = "cifar-10-batches-bin"
    FILES = {  # noqa: RUF012
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    # One byte each before an image, in this order: the feature, its classes, the file of their names.
    LABELS = (("label", 10, "batches.meta.txt"),)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                }
                | {key: tfds.features.ClassLabel(num_classes=classes) for key, classes, _ in self.LABELS}
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        archive = fetch(self.URL, self.MD5, folder(self.URL, self.data_dir_root))
        features: Any = self.info.features
        with tarfile.open(archive) as tar:
            for key, _, file in self.LABELS:
                features[key].names = self._member(tar, file).decode().split()
            data = {split: b"".join(self._member(tar, file) for file in files) for split, files in self.FILES.items()}
        return {split: self._generate_examples(split, records) for split, records in data.items()}

    def _member(self, tar: tarfile.TarFile, name: str) -> bytes:
        # Read in place: nothing is extracted to the disk.
        file: Any = tar.extractfile(f"{self.FOLDER}/{name}")
        return file.read()

    def _generate_examples(self, split, data):
        keys = [key for key, _, _ in self.LABELS]
        records = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + _IMAGE_BYTES)
        labels, images = np.split(records, [len(keys)], axis=1)
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i in with_progress(range(len(records)), f"Preparing {self.name}, {split}", len(records)):
            # TFDS orders a split by a hash of the key: with the same keys, the order is that of TFDS.
            yield (
                i,
                {
                    "id": f"{split}_{i:05d}",
                    "image": Image.fromarray(images[i]),
                    **dict(zip(keys, labels[i].tolist(), strict=True)),
                },
            )


class Cifar100(Cifar10, skip_registration=True):
    """50,000 training and 10,000 test images of 32x32 in 100 classes, which form 20 coarse ones."""

    URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    MD5 = "03b5dce01913d631647c71ecec9e9cb8"
    FOLDER = "cifar-100-binary"
    FILES = {"train": ["train.bin"], "test": ["test.bin"]}  # noqa: RUF012
    LABELS = (("coarse_label", 20, "coarse_label_names.txt"), ("label", 100, "fine_label_names.txt"))
