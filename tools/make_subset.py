"""Make the bundled Fashion-MNIST subset from the full set: `python tools/make_subset.py [ROOT]`.

Takes the first 1,200 training and 200 test images of each class, interleaves the classes and writes one xz file for
each split. The same input gives the same bytes; it prints their checksums, which belong into
`advcourse.data.small.SUBSET`.
"""

import io
import lzma
import sys
from pathlib import Path

import numpy as np

from advcourse.data import fashion_mnist
from advcourse.files import ASSETS, sha256, write_whole

PER_CLASS = {"train": 1200, "test": 200}


def interleaved(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `per_class` images of each class, in the order 0, 1, …, 9, 0, 1, …"""
    rows = np.stack([np.flatnonzero(labels == c)[:per_class] for c in range(10)], axis=1).ravel()
    return images[rows], labels[rows]


def main(root: str | None = None) -> None:
    for split, per_class in PER_CLASS.items():
        x, y = fashion_mnist(split, root=root, full=True)
        images = (x[:, 0] * 255).round().byte().numpy()
        stream = io.BytesIO()
        for array in interleaved(images, y.byte().numpy(), per_class):
            np.save(stream, array)
        packed = lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME)
        path: Path = ASSETS / "fashion_mnist" / f"{split}.npy.xz"
        write_whole(path, packed)
        print(f"{path.name}: {10 * per_class:,} images, {len(packed) / 1e6:.1f} MB, SHA-256 {sha256(packed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
