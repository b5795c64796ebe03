"""ImageNet (ILSVRC 2012) as TFDS has it, from the two archives, which need a registration."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from hsakd_jax.core.console import with_progress
from hsakd_jax.core.errors import UserError

_CITATION = """\
@article{ILSVRC15,
    author = {Olga Russakovsky and Jia Deng and Hao Su and Jonathan Krause and Sanjeev Satheesh and Sean Ma and
              Zhiheng Huang and Andrej Karpathy and Aditya Khosla and Michael Bernstein and Alexander C. Berg and
              Li Fei-Fei},
    title = {{ImageNet Large Scale Visual Recognition Challenge}},
    journal = {International Journal of Computer Vision},
    year = {2015}
}
"""


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,281,167 training and 50,000 validation images of many sizes in 1,000 classes, by WordNet id.

    The files are stored as they come, so that a handful are CMYK and one is a PNG. There is no split `test`:
    its labels are not published. While TFDS sorts them, the disk holds them once more: another 300 GB.
    """

    VERSION = tfds.core.Version("5.1.0")
    FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}  # noqa: RUF012
    IMAGES = {"train": 1_281_167, "validation": 50_000}  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names_file=tfds.core.tfds_path(_FACTS + "labels.txt")),
                    "file_name": tfds.features.Text(),  # such as n15075141_54.JPEG
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        archives = {split: self._archive(file) for split, file in self.FILES.items()}
        return {split: self._generate_examples(split, archive) for split, archive in archives.items()}

    def _archive(self, file: str) -> Path:
        root = Path(self.data_dir_root)
        for folder in (root, root / "downloads/manual"):
            if (folder / file).exists():
                return folder / file
        raise UserError(
            f"no {file}: get {' and '.join(self.FILES.values())} from https://image-net.org/download-images and put "
            f"them in {root / 'downloads/manual'}; or name the dataset image_tree, which reads DIR/train/<wnid>/*.JPEG "
            "and DIR/val/<wnid>/*.JPEG in place"
        )

    def _generate_examples(self, split, archive):
        count = 0
        features: Any = self.info.features
        known = set(features["label"].names)
        members = _of_classes(archive) if split == "train" else _of_validation(archive)
        try:
            for name, label, content in with_progress(members, f"Preparing {self.name}, {split}", self.IMAGES[split]):
                if label not in known:
                    raise UserError(f"{archive} has a class {label}, which ImageNet has not: get the archive again")
                count += 1
                yield name, {"image": io.BytesIO(content), "label": label, "file_name": name}
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive} is damaged after {count} images ({error}): get it again") from error
        if count != self.IMAGES[split]:
            raise UserError(f"{archive} has {count} images and should have {self.IMAGES[split]}: get it again")


_FACTS = "datasets/imagenet2012/"  # of TFDS itself


def _of_classes(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, class and bytes of each image in a tar of one tar per class."""
    with tarfile.open(archive, "r:") as outer:
        for part in outer:
            file: Any = outer.extractfile(part)
            if file is None:
                continue
            with tarfile.open(fileobj=file, mode="r:") as inner:
                for name, content in _files(inner):
                    yield name, part.name.rsplit("/", 1)[-1].removesuffix(".tar"), content


def _of_validation(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same of a tar of images, whose labels TFDS has in the order of their names."""
    labels = Path(tfds.core.tfds_path(_FACTS + "validation_labels.txt")).read_text().split()
    with tarfile.open(archive, "r:") as tar:
        names = sorted(member.name.rsplit("/", 1)[-1] for member in tar if member.isfile())
        labelled = dict(zip(names, labels, strict=False))
        for name, content in _files(tar):
            if name not in labelled:
                raise UserError(f"{archive} has more than {len(labels)} images: get it again")
            yield name, labelled[name], content


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        file = tar.extractfile(member)
        if file is not None:
            yield member.name.rsplit("/", 1)[-1], file.read()
