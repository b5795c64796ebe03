"""Image files of any kind and size as what a network takes: square, 8 bits."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hsakd_jax.core.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# A large JPEG is decoded at this many times the size needed at least, a photograph of 12 megapixels in a tenth
# of the time; the result differs from a full decoding by less than one grey level of 255 in the mean.
_FINER = 4


def square(path: str | Path, size: int) -> Image.Image:
    """The greatest square in the middle of an image, upright and RGB, at `size` x `size` pixels.

    Raises:
      UserError: the file can't be read as an image.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is no file: check the path")
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_FINER * size, _FINER * size))
            return ImageOps.fit(_rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged file can fail anywhere in the decoder
        reason = "of an unknown kind, or damaged" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{path} can't be read as an image ({reason}): mend or delete it") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any image as a viewer on a white page would show it."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
