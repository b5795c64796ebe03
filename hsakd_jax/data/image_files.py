"""Image files of any kind and size as 8-bit RGB pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hsakd_jax.core.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# The decoders that may see a file. Pillow has others, and one of them starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# A large JPEG is decoded at this many times the size needed at least, a photograph of 12 megapixels in a tenth
# of the time; the result differs from a full decoding by less than one grey level of 255 in the mean.
_FINER = 4


def open_image(source: str | Path | bytes) -> Image.Image:
    """Opens an image file, or the bytes of one, by the decoders of `FORMATS` only; it is decoded when it is used.

    Raises:
      OSError: the file can't be read, or is no image of these formats.
    """
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def rgb(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it on a white page: 8 bits per channel, RGB."""
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def square(path: str | Path, size: int) -> Image.Image:
    """The greatest square in the middle of an image, upright and RGB, at `size` x `size` pixels.

    Raises:
      UserError: the file can't be read as an image.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is no file: check the path")
    try:
        with open_image(path) as image:
            image.draft("RGB", (_FINER * size, _FINER * size))
            return ImageOps.fit(rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged file can fail anywhere in the decoder
        reason = "of an unknown kind, or damaged" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{path} can't be read as an image ({reason}): mend or delete it") from error
