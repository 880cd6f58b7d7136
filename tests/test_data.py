import importlib.util
import io
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from advcourse import data
from advcourse.data import FASHION_CLASSES, FASHION_MEAN, FASHION_STD, fashion_mnist, interleaved
from advcourse.files import sha256

from .helpers import rng, tiny, write_tiny

SIZES = {"train": 12_000, "test": 2_000}


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpacked archives go to a folder of the test's own, and what a test made of the caches does not outlive it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    data._everything.cache_clear()


@pytest.mark.parametrize("split", SIZES)
def test_the_bundled_images_are_balanced_and_interleaved(split: str) -> None:
    x, y = fashion_mnist(split)
    assert (x.shape, x.dtype) == ((SIZES[split], 1, 28, 28), torch.float32)
    assert (y.shape, y.dtype) == ((SIZES[split],), torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal(y, torch.arange(len(y)) % 10)
    assert torch.equal((x * 255).round() / 255, x)
    assert abs(x.mean() - FASHION_MEAN) < 0.01
    assert abs(x.std() - FASHION_STD) < 0.01
    assert len(FASHION_CLASSES) == 10


def test_the_first_n_are_always_the_same_ones() -> None:
    x, y = fashion_mnist("test", n=100)
    whole, labels = fashion_mnist("test")
    assert torch.equal(x, whole[:100])
    assert torch.equal(y, labels[:100])
    assert torch.bincount(y).tolist() == [10] * 10


def test_callers_get_their_own_copy() -> None:
    x, y = fashion_mnist("test", n=3)
    x.zero_()
    y.zero_()
    assert fashion_mnist("test", n=3)[0].any()
    assert fashion_mnist("test", n=3)[1].tolist() == [0, 1, 2]


def test_classes_keep_their_numbers_and_their_order() -> None:
    x, y = fashion_mnist("test", n=7, classes=[9, 2])
    assert y.tolist() == [2, 9, 2, 9, 2, 9, 2]
    whole, labels = fashion_mnist("test")
    assert torch.equal(x, whole[(labels == 2) | (labels == 9)][:7])
    assert torch.equal(fashion_mnist("test", classes=range(10))[0], whole)
    assert len(fashion_mnist("test", classes=(c for c in [4, 4]))[1]) == 200


def fingerprints(x: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in x]


def test_a_generator_draws_without_replacement() -> None:
    state = torch.get_rng_state()
    x, y = fashion_mnist("test", n=300, classes=[1, 5], generator=rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    whole, labels = fashion_mnist("test", classes=[1, 5])
    known = dict(zip(fingerprints(whole), labels.tolist(), strict=True))
    assert len(set(fingerprints(x))) == 300
    assert [known[image] for image in fingerprints(x)] == y.tolist()
    assert torch.equal(fashion_mnist("test", n=300, classes=[1, 5], generator=rng(1))[0], x)
    assert not torch.equal(fashion_mnist("test", n=300, classes=[1, 5], generator=rng(2))[0], x)
    assert not torch.equal(x, whole[:300])


@pytest.mark.parametrize("split", ["validation", "Train", "", None, 1])
def test_an_unknown_split_is_refused(split: object) -> None:
    with pytest.raises(ValueError, match=r'"train" or "test", got '):
        fashion_mnist(split)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, -1, 2001, 1.5, "3", True])
def test_an_impossible_n_is_refused(n: object) -> None:
    with pytest.raises(ValueError, match=r"integer in 1\.\.2000 .*, got .*full=True"):
        fashion_mnist("test", n=n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1\.\.200 "):
        fashion_mnist("test", n=201, classes=[3])


@pytest.mark.parametrize("classes", [[], [10], [-1], [0, 1.5], "ab"])
def test_unknown_classes_are_refused(classes: object) -> None:
    with pytest.raises(ValueError, match=r"classes must be some of 0\.\.9, got "):
        fashion_mnist("test", classes=classes)  # type: ignore[arg-type]


def test_a_missing_or_damaged_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data.ASSETS / "fashion_mnist", tmp_path / "fashion_mnist")
    monkeypatch.setattr(data, "ASSETS", tmp_path)
    monkeypatch.setattr(data, "_bundled", data._bundled.__wrapped__)  # the cache would hide the change
    assert len(fashion_mnist("test", n=5)[0]) == 5
    path = tmp_path / "fashion_mnist" / "test.npy.xz"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.npy\.xz is damaged .*install advcourse again"):
        fashion_mnist("test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.npy\.xz is missing: install advcourse again"):
        fashion_mnist("test")


# All images: from torchvision's layout, from archives, from Debian's package


def assert_tiny(split: str, found: tuple[Tensor, Tensor], seed: int = 0) -> None:
    images, labels = tiny(split, seed)
    assert torch.equal(found[0], torch.from_numpy(images)[:, None].float() / 255)
    assert torch.equal(found[1], torch.from_numpy(labels).long())


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [Path, str])
def test_root_holds_archives_or_what_torchvision_made_of_them(
    tmp_path: Path, split: str, packed: bool, kind: type
) -> None:
    root = write_tiny(tmp_path / "root", packed)
    before = sorted(root.rglob("*"))
    assert_tiny(split, fashion_mnist(split, root=kind(root)))
    assert_tiny(split, fashion_mnist(split, root=kind(root), full=True))
    assert sorted(root.rglob("*")) == before  # it may be read-only
    assert len(fashion_mnist(split, n=4, classes=[0, 7], root=kind(root))[1]) == 4


def test_two_roots_and_debian_s_package_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEBIAN", write_tiny(tmp_path / "debian", packed=True, seed=3))
    first, second = (write_tiny(tmp_path / f"root{seed}", packed=True, seed=seed) for seed in (1, 2))
    assert_tiny("train", fashion_mnist("train", root=first), seed=1)
    assert_tiny("train", fashion_mnist("train", root=second), seed=2)
    assert_tiny("train", fashion_mnist("train", full=True), seed=3)
    assert_tiny("test", fashion_mnist("test", root=first), seed=1)
    data._everything.cache_clear()  # as in the next process
    assert_tiny("test", fashion_mnist("test", full=True), seed=3)
    assert_tiny("test", fashion_mnist("test", root=second), seed=2)
    # With no package there, what was unpacked from elsewhere is not taken for the full set.
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [])
    data._everything.cache_clear()
    with pytest.raises(FileNotFoundError, match="could not be had"):
        fashion_mnist("test", full=True)


def test_a_root_without_the_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    def offline(self: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMNIST, "download", offline)
    with pytest.raises(FileNotFoundError, match="is not a folder: root must hold"):
        fashion_mnist("test", root=tmp_path / "nowhere")
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for root in tmp_path / "empty", None:
        with pytest.raises(FileNotFoundError, match=r"no network.*dataset-fashion-mnist.*root="):
            fashion_mnist("test", root=root, full=True)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"<html>" + content])
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_full_data_says_which_file(tmp_path: Path, packed: bool, damage: object) -> None:
    root = write_tiny(tmp_path / "root", packed)
    path = next(root.rglob("t10k-images*"))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises((ValueError, FileNotFoundError), match=r"root"):
        fashion_mnist("test", root=root)


def test_interleaving_takes_the_first_of_each_class_in_turn() -> None:
    labels = np.repeat(np.arange(10), 3)[::-1].copy()
    images = np.arange(30)
    taken, classes = interleaved(images, labels, 2)
    assert classes.tolist() == [*range(10)] * 2
    assert taken.tolist() == [27 - 3 * c for c in range(10)] + [28 - 3 * c for c in range(10)]


@pytest.mark.skipif(not data.DEBIAN.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_the_bundled_images_are_the_tool_s_subset_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("make_subset", Path(__file__).parents[1] / "tools" / "make_subset.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for split, size in ("train", 60_000), ("test", 10_000):
        images, labels = data._everything(split, None)
        assert images.shape == (size, 28, 28)
        bundled = data._bundled(split)
        for ours, theirs in zip(
            bundled, interleaved(images.numpy(), labels.numpy(), tool.PER_CLASS[split]), strict=True
        ):
            assert np.array_equal(ours.numpy(), theirs)
    # Packing the training images again takes long and shows nothing more.
    monkeypatch.setattr(tool, "PER_CLASS", {"test": tool.PER_CLASS["test"]})
    monkeypatch.setattr(tool, "ASSETS", tmp_path)
    tool.main()
    packed = (tmp_path / "fashion_mnist" / "test.npy.xz").read_bytes()
    assert sha256(packed) == data.SUBSET["test"]
    assert np.load(io.BytesIO(lzma.decompress(packed))).shape == (2000, 28, 28)
