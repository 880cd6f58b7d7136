import hashlib
import importlib.util
import io
import lzma
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.models import get_model_weights

from advcourse.data import (
    FASHION_CLASSES,
    FASHION_MEAN,
    FASHION_STD,
    cifar10,
    fashion_mnist,
    imagenet,
    imagenet_folder,
    imagenet_samples,
    nips17,
    small,
)
from advcourse.files import sha256

from .helpers import rng, tiny, write_tiny

SIZES = {"train": 12_000, "test": 2_000}


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpacked archives go to a folder of the test's own, and what a test made of the caches does not outlive it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    small._everything.cache_clear()
    small._cifar10.cache_clear()


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
    shutil.copytree(small.ASSETS / "fashion_mnist", tmp_path / "fashion_mnist")
    monkeypatch.setattr(small, "ASSETS", tmp_path)
    monkeypatch.setattr(small, "_bundled", small._bundled.__wrapped__)  # the cache would hide the change
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
    monkeypatch.setattr(small, "DEBIAN", write_tiny(tmp_path / "debian", packed=True, seed=3))
    first, second = (write_tiny(tmp_path / f"root{seed}", packed=True, seed=seed) for seed in (1, 2))
    assert_tiny("train", fashion_mnist("train", root=first), seed=1)
    assert_tiny("train", fashion_mnist("train", root=second), seed=2)
    assert_tiny("train", fashion_mnist("train", full=True), seed=3)
    assert_tiny("test", fashion_mnist("test", root=first), seed=1)
    small._everything.cache_clear()  # as in the next process
    assert_tiny("test", fashion_mnist("test", full=True), seed=3)
    assert_tiny("test", fashion_mnist("test", root=second), seed=2)
    # With no package there, what was unpacked from elsewhere is not taken for the full set.
    monkeypatch.setattr(small, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [])
    small._everything.cache_clear()
    with pytest.raises(FileNotFoundError, match="could not be had"):
        fashion_mnist("test", full=True)


def test_a_root_without_the_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    def offline(self: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMNIST, "download", offline)
    with pytest.raises(FileNotFoundError, match="is not a folder: root must hold"):
        fashion_mnist("test", root=tmp_path / "nowhere")
    monkeypatch.setattr(small, "DEBIAN", tmp_path / "nowhere")
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


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_subset", Path(__file__).parents[1] / "tools" / "make_subset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interleaving_takes_the_first_of_each_class_in_turn(tool: ModuleType) -> None:
    labels = np.repeat(np.arange(10), 3)[::-1].copy()
    images = np.arange(30)
    taken, classes = tool.interleaved(images, labels, 2)
    assert classes.tolist() == [*range(10)] * 2
    assert taken.tolist() == [27 - 3 * c for c in range(10)] + [28 - 3 * c for c in range(10)]


@pytest.mark.skipif(not small.DEBIAN.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_the_bundled_images_are_the_tool_s_subset_of_the_whole(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, size in ("train", 60_000), ("test", 10_000):
        images, labels = small._everything(split, None)
        assert images.shape == (size, 28, 28)
        bundled = small._bundled(split)
        subset = tool.interleaved(images.numpy(), labels.numpy(), tool.PER_CLASS[split])
        for ours, theirs in zip(bundled, subset, strict=True):
            assert np.array_equal(ours.numpy(), theirs)
    # Packing the training images again takes long and shows nothing more.
    monkeypatch.setattr(tool, "PER_CLASS", {"test": tool.PER_CLASS["test"]})
    monkeypatch.setattr(tool, "ASSETS", tmp_path)
    tool.main()
    packed = (tmp_path / "fashion_mnist" / "test.npy.xz").read_bytes()
    assert sha256(packed) == small.SUBSET["test"]
    assert np.load(io.BytesIO(lzma.decompress(packed))).shape == (2000, 28, 28)


# CIFAR-10, in miniature


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Batches as they are distributed, which torchvision takes for whole; what is in them, for each split."""
    files = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        content = np.random.default_rng(len(files)).integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
        files[name] = {"data": content, "labels": [(7 * i + len(files)) % 10 for i in range(20)]}
    names = {"label_names": list("abcdefghij")}
    home = folder / "cifar-10-batches-py"
    home.mkdir(parents=True)
    sums = {}
    for name, content in {**files, "batches.meta": names}.items():
        (home / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((home / name).read_bytes()).hexdigest()
    splits = {"train": ["data_batch_1", "data_batch_2"], "test": ["test_batch"]}
    for split, members in splits.items():
        monkeypatch.setattr(CIFAR10, f"{split}_list", [[name, sums[name]] for name in members])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return {
        split: (
            torch.cat([torch.from_numpy(files[name]["data"]).view(-1, 3, 32, 32) for name in members]),
            torch.tensor([label for name in members for label in files[name]["labels"]]),
        )
        for split, members in splits.items()
    }


@pytest.mark.parametrize("split", SIZES)
def test_cifar10_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    images, labels = write_cifar(tmp_path, monkeypatch)[split]
    x, y = cifar10(split, root=tmp_path)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous()
    assert torch.equal(x, images.float() / 255)  # as they are: channels first
    assert torch.equal(y, labels)
    assert torch.equal(cifar10(split, n=7, root=str(tmp_path))[0], x[:7])
    x.zero_()
    assert cifar10(split, root=tmp_path)[0].any()


def test_cifar10_selects_as_fashion_mnist_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    whole, labels = cifar10("train", root=tmp_path)
    x, y = cifar10("train", n=5, classes=[3, 8], root=tmp_path)
    kept = (labels == 3) | (labels == 8)
    assert torch.equal(x, whole[kept][:5])
    assert torch.equal(y, labels[kept][:5])
    drawn, classes = cifar10("train", n=30, generator=rng(1), root=tmp_path)
    known = dict(zip(fingerprints(whole), labels.tolist(), strict=True))
    assert len(set(fingerprints(drawn))) == 30
    assert [known[image] for image in fingerprints(drawn)] == classes.tolist()
    assert not torch.equal(drawn, whole[:30])
    with pytest.raises(ValueError, match=r'"train" or "test", got'):
        cifar10("validation", root=tmp_path)
    with pytest.raises(ValueError, match=r"integer in 1\.\.40 .*, got 41$"):
        cifar10("train", n=41, root=tmp_path)
    with pytest.raises(ValueError, match=r"classes must be some of 0\.\.9, got \[10\]"):
        cifar10("train", classes=[10], root=tmp_path)


def test_cifar10_lies_in_the_user_s_cache_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = write_cifar(tmp_path / "cache" / "advcourse", monkeypatch)["test"]
    assert torch.equal(cifar10("test")[0], images.float() / 255)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_cifar10_that_is_missing_or_damaged_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object
) -> None:
    write_cifar(tmp_path, monkeypatch)
    damage(tmp_path / "cifar-10-batches-py" / "data_batch_2")  # type: ignore[operator]
    for root in tmp_path, tmp_path / "nowhere", None:
        with pytest.raises(FileNotFoundError, match=r"could not be had from .*download=True.*root="):
            cifar10("train", root=root)


def test_cifar10_is_downloaded_only_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(FileNotFoundError, match="no network"):
        cifar10("test", root=tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match="not found or corrupted"):
        cifar10("test", root=tmp_path)
    monkeypatch.setattr(CIFAR10, "download", lambda dataset: write_cifar(Path(dataset.root), monkeypatch))
    assert len(cifar10("test", root=tmp_path, download=True)[0]) == 20


# A folder of pictures for each class


def write_folder(root: Path) -> Path:
    """Three, one and two pictures of classes a, b and c, of one colour each: red is the class, green the number."""
    for label, (name, number) in enumerate({"a": 3, "b": 1, "c": 2}.items()):
        (root / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (40, 30), (80 * label, 60 * i, 0)).save(root / name / f"{i}.JPEG", quality=95)
    return root


def read(x: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Class and number of each image, from its colour; the class must be its label."""
    colours = (x.mean((2, 3)) * 255 / torch.tensor([80, 60, 1])).round().long()
    assert colours[:, 0].tolist() == y.tolist()
    return [(red, green) for red, green, _ in colours.tolist()]


@pytest.mark.parametrize("below", ["", "val"])
def test_a_folder_s_classes_take_turns(tmp_path: Path, below: str) -> None:
    write_folder(tmp_path / below)
    x, y = imagenet_folder(tmp_path, size=8, resize=9)
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 8, 8), torch.float32, torch.int64)
    order = [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]
    assert read(x, y) == order
    assert read(*imagenet_folder(str(tmp_path), n=4, size=8, resize=9)) == order[:4]
    drawn = read(*imagenet_folder(tmp_path, n=5, generator=rng(1), size=8, resize=9))
    assert len(set(drawn)) == 5
    assert drawn != order[:5]
    assert drawn == read(*imagenet_folder(tmp_path, n=5, generator=rng(1), size=8, resize=9))


def test_val_is_preferred_to_its_neighbours(tmp_path: Path) -> None:
    for name in "train", "val":
        write_folder(tmp_path / name)
    (tmp_path / "train" / "a" / "0.JPEG").unlink()
    x, y = imagenet_folder(tmp_path, n=1, size=8, resize=9)
    assert read(x, y) == [(0, 0)]


@pytest.mark.parametrize("name", ["resnet18", "inception_v3"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_are_resized_and_cropped_as_the_weights_say(tmp_path: Path, name: str, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((700, 500)).convert(mode)
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png")
    transforms = get_model_weights(name)["IMAGENET1K_V1"].transforms()
    x, _ = imagenet_folder(tmp_path, size=transforms.crop_size[0], resize=transforms.resize_size[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transforms.mean, transforms.std))
    torch.testing.assert_close((x[0] - mean) / std, transforms(picture.convert("RGB")))


def test_only_the_chosen_pictures_are_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "c" / "0.JPEG"
    whole = path.read_bytes()
    Image.open(path).save(path, "PNG")  # Pillow goes by the content
    png = path.read_bytes()
    short_header, short_data = (png[:byte] + b"\x05" + png[byte + 1 :] for byte in (11, 36))  # lengths
    for damaged in b"", b"<html>", whole[: len(whole) // 2], whole[:-20], short_header, short_data:
        path.write_bytes(damaged)
        assert len(imagenet_folder(tmp_path, n=2, size=8, resize=9)[1]) == 2
        with pytest.raises(ValueError, match=r"c/0\.JPEG cannot be read as an image \(.*replace or remove it"):
            imagenet_folder(tmp_path, n=3, size=8, resize=9)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not hold a folder of images for each class"):
        imagenet_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"does not hold .*any class folder"):
        imagenet_folder(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "d").mkdir()
    with pytest.raises(FileNotFoundError, match=r"does not hold .*the classes d\."):
        imagenet_folder(tmp_path)


def test_an_impossible_choice_of_pictures_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for n in 0, 7, 1.5, True:
        with pytest.raises(ValueError, match=r"integer in 1\.\.6 .*, got "):
            imagenet_folder(tmp_path, n=n)  # type: ignore[arg-type]
    for size in 0, 257:
        with pytest.raises(ValueError, match=rf"size must be in 1\.\.256, .* got {size}"):
            imagenet_folder(tmp_path, size=size)


TABLE = "ImageId,TrueLabel,TargetClass\n"


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        (None, FileNotFoundError, r"images\.csv is missing: root must hold images\.csv"),
        ("", ValueError, "must have a row for each image"),
        (TABLE, ValueError, "must have a row for each image"),
        ("ImageId,TrueLabel\nim0,1\n", ValueError, "must have the columns"),
        (TABLE + "im0,one,2\n", ValueError, "must have the columns"),
        (TABLE + "im0,0,2\n", ValueError, "with labels from 1"),
        (TABLE + "im0,1\n", ValueError, "must have the columns"),
        (TABLE + "im0,1,2\nim1,1,2\n", FileNotFoundError, r"im0\.png is missing, and 1 more"),
    ],
)
def test_a_damaged_table_of_the_competition(tmp_path: Path, table: str | None, error: type, said: str) -> None:
    if table is not None:
        (tmp_path / "images.csv").write_text(table)
    with pytest.raises(error, match=said):
        nips17(tmp_path)


def test_a_damaged_image_of_the_competition(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images.csv").write_text(TABLE + "im0,1,2\n")
    (tmp_path / "images" / "im0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"im0\.png cannot be read as an image"):
        nips17(tmp_path)


def test_twenty_photographs_that_networks_know() -> None:
    x, y = imagenet_samples()
    assert (x.shape, x.dtype, y.dtype) == ((20, 3, 224, 224), torch.float32, torch.int64)
    assert 0 <= x.min() < x.max() <= 1
    assert imagenet_samples(size=64, resize=64)[0].shape == (20, 3, 64, 64)
    with pytest.raises(ValueError, match=r"size must be in 1\.\.64"):
        imagenet_samples(size=65, resize=64)


def test_without_foolbox_there_are_no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="advcourse\\[imagenet\\]"):
        imagenet_samples()
