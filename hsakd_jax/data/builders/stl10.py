"""STL-10 as TFDS has it, from the published binary archive."""

import tarfile
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from hsakd_jax.core.console import Progress, with_progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.builders.download import fetch, folder

_CITATION = """\
@inproceedings{coates2011analysis,
    author = {Adam Coates and Andrew Ng and Honglak Lee},
    title = {An analysis of single-layer networks in unsupervised feature learning},
    booktitle = {AISTATS},
    year = {2011}
}
"""
_PIECE = 1 << 20  # bytes of the archive read at a time


class Stl10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """5,000 training and 8,000 test images of 96x96 in 10 classes.

    The 100,000 images of TFDS's split `unlabelled` are left out: nothing here learns without labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    MD5 = "91f7769df0f17e558f3565bffb0c7dfb"
    FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(96, 96, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://ai.stanford.edu/~acoates/stl10/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        content = self._members(fetch(self.URL, self.MD5, folder(self.URL, self.data_dir_root)))
        features: Any = self.info.features
        features["label"].names = content["class_names.txt"].decode().split()
        return {
            split: self._generate_examples(split, content[f"{split}_X.bin"], content[f"{split}_y.bin"])
            for split in ("train", "test")
        }

    def _members(self, archive) -> dict[str, bytes]:
        """The files needed, in one pass, since each step back in a gzip restarts it."""
        found = {}
        size = archive.stat().st_size
        with (
            archive.open("rb") as raw,
            Progress(f"Reading {archive}", size, "MB") as progress,
            tarfile.open(fileobj=cast(Any, _Watched(raw, progress)), mode="r|gz", bufsize=_PIECE) as tar,
        ):
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in self.FILES:
                    file: Any = tar.extractfile(member)
                    found[name] = file.read()
                if len(found) == len(self.FILES):
                    break
        if missing := set(self.FILES) - found.keys():
            raise UserError(f"{archive} lacks {', '.join(sorted(missing))}: delete it and run again")
        return found

    def _generate_examples(self, split, images, labels):
        # Stored by channel, then by column.
        images = np.frombuffer(images, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        labels = np.frombuffer(labels, np.uint8)
        for i in with_progress(range(len(images)), f"Preparing {self.name}, {split}", len(images)):
            image = Image.fromarray(np.ascontiguousarray(images[i]))
            yield i, {"image": image, "label": int(labels[i]) - 1}


class _Watched:
    """A file that reports how far it has been read."""

    def __init__(self, file, progress: Progress):
        self.file, self.progress = file, progress

    def read(self, size: int) -> bytes:
        self.progress.update(self.file.tell())
        return self.file.read(size)
