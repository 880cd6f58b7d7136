import pytest
import torch
from torch import nn

from advcourse.models import preactresnet18, wide_resnet
from advcourse.models.large import PreActivated


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(preactresnet18()) == 11_172_170
        assert count(wide_resnet()) == 46_160_474
        assert count(wide_resnet(28, 10)) == 36_479_194
        assert count(wide_resnet(40, 1)) == 563_930
        assert count(wide_resnet(28, 10, classes=100)) == 36_479_194 + 90 * 641


@pytest.mark.parametrize(("channels", "size", "last"), [(1, 28, 4), (3, 32, 4)])
def test_stages_halve_the_image_three_times_and_twice(channels: int, size: int, last: int) -> None:
    x = torch.rand(2, channels, size, size)
    deep, wide = preactresnet18(channels), wide_resnet(10, 2, channels)
    assert deep[:-5](x).shape == (2, 512, last, last)
    assert wide[:-5](x).shape == (2, 128, size // 4, size // 4)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
@pytest.mark.parametrize("build", [preactresnet18, lambda **shape: wide_resnet(10, 1, **shape)])
def test_every_parameter_and_pixel_has_a_gradient(build: object, channels: int, size: int) -> None:
    x = torch.rand(2, channels, size, size, requires_grad=True)
    network = build(channels=channels, classes=7)  # type: ignore[operator]
    logits = network(x)
    assert logits.shape == (2, 7)
    (logits * torch.arange(7)).sum().backward()
    assert x.grad is not None
    assert x.grad.any((1, 2, 3)).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_block_adds_to_its_input_or_to_a_convolution_of_the_activated_one() -> None:
    x = torch.randn(2, 4, 6, 6)
    for outputs, stride in (4, 1), (4, 2), (5, 1):
        block = PreActivated(4, outputs, stride).eval()
        nn.init.zeros_(block.convolutions[-1].weight)  # type: ignore[arg-type]
        if block.shortcut is None:
            assert (outputs, stride) == (4, 1)
            assert torch.equal(block(x), x)
        else:
            # Batch norm is the identity before it is trained, up to its epsilon.
            torch.testing.assert_close(block(x), block.shortcut(x.relu()), rtol=1e-4, atol=1e-4)


def test_initial_convolutions_are_he_s() -> None:
    convolution = wide_resnet(10, 4)[3].convolutions[0]
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * convolution.out_channels)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [4, 0, -2, 9, 11, 18, 33])
def test_an_impossible_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6n \+ 4 \(10, 16, 22, …\), got {depth}"):
        wide_resnet(depth)
