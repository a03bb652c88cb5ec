"""Image classification data from a .tar of image files with a sub-folder a class, and augmentation of a batch.

The order of classes and samples is that of Braid's input/folder.ts: classes by name, samples by class and file name.
"""

import io
import tarfile

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")


def read_image_tar(path):
    """-> images u8[N, H, W, 3], labels i64[N], the class names in the order of their labels. All of it in memory."""
    with tarfile.open(path) as tar:
        files = {}  # (class, file name): place in the tar
        for member in tar:
            parts = member.name.removeprefix("./").split("/")
            if member.isfile() and len(parts) == 2 and parts[1].lower().endswith(SUFFIXES):
                files[tuple(parts)] = member
        if not files:
            raise SystemExit(f"{path} has no image in a sub-folder: give a .tar with a sub-folder a class")
        images = [decoded(tar.extractfile(files[at]).read()) for at in sorted(files)]
    classes = sorted({name for name, _ in files})
    labels = {name: label for label, name in enumerate(classes)}
    return np.stack(images), np.array([labels[name] for name, _ in sorted(files)]), classes


def decoded(file):
    """The bytes of a JPEG or PNG -> u8[H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def augmented(images, ids, random, pad, pad_mode, flip):
    """The samples `ids`, each padded, cropped back to size at random, and mirrored half of the time.

    Padding is never written out: where each pixel comes from is computed, and one gather brings them all.
    @param images u8[N, H, W, 3]   @param random a numpy Generator   @returns u8[B, H, W, 3]
    """
    batch, (height, width) = len(ids), images.shape[1:3]
    rows = random.integers(-pad, pad + 1, (batch, 1)) + np.arange(height)
    columns = random.integers(-pad, pad + 1, (batch, 1)) + np.arange(width)
    if flip:
        mirrored = random.random(batch) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    out = images[ids[:, None, None], reflected(rows, height)[:, :, None], reflected(columns, width)[:, None, :]]
    if pad_mode == "zero":
        out[~(inside(rows, height)[:, :, None] & inside(columns, width)[:, None, :])] = 0
    return out


def reflected(at, size):
    """Places beyond an edge -> as far inside of it; the edge itself is not repeated."""
    return size - 1 - np.abs(size - 1 - np.abs(at))


def inside(at, size):
    return (at >= 0) & (at < size)
