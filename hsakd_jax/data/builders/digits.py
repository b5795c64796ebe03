"""scikit-learn's handwritten digits: real images that need no network."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,797 grey 8x8 images in 10 classes: uint8 [8, 8, 1], ink 0..16 scaled to 0..255.

    Of each class every second image, in the published order, is a test image (901 train, 896 test). A rule without a
    random generator never changes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html#digits-dataset",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # a second to import, needed once

        inks, labels = load_digits(return_X_y=True)
        images = np.rint(inks * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        is_test = np.zeros(len(images), bool)
        for label in range(10):
            is_test[np.flatnonzero(labels == label)[1::2]] = True
        return {
            name: self._generate_examples(images, labels, np.flatnonzero(chosen))
            for name, chosen in (("train", ~is_test), ("test", is_test))
        }

    def _generate_examples(self, images, labels, indices):
        for i in indices.tolist():
            yield i, {"image": Image.fromarray(images[i]), "label": int(labels[i])}
