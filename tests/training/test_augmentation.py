import pytest
import torch

from advcourse.training import Crop, Mirror

from ..helpers import images, rng

X = images(200, (2, 5, 7))


def test_about_half_of_the_images_are_mirrored_and_the_others_left_alone() -> None:
    found = Mirror()(X, rng())
    flipped = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(found, X, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(found, X, strict=True)])
    assert (flipped | kept).all()
    assert 70 < flipped.sum() < 130


def test_a_crop_moves_each_image_by_its_own_step_and_fills_with_black() -> None:
    found, moves = Crop(2)(X, rng()), set()
    padded = torch.nn.functional.pad(X, [2] * 4)
    for image, around in zip(found, padded, strict=True):
        (move,) = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, around[:, top : top + 5, left : left + 7])
        ]
        moves.add(move)
    assert len(moves) == 25
    assert torch.equal(Crop(0)(X, rng()), X)


def test_a_margin_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="margin must be an integer >= 0"):
        Crop(-1)
