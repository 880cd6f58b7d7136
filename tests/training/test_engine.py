import sys
import warnings

import pytest
import torch

from advcourse.training import FastTraining, engine

from .small import BALL, fit, plain, same


def test_half_precision_is_off_where_it_gains_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.warns(UserWarning, match="half precision is off: this processor gains nothing from it"):
        assert engine(half=True).mixed_precision == "no"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert engine(half=True).mixed_precision == "bf16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine().mixed_precision == "no"  # whatever an earlier one had


@pytest.mark.parametrize(("bfloat", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_computes_in_what_it_has(monkeypatch: pytest.MonkeyPatch, bfloat: bool, expected: str) -> None:
    from advcourse.training.engine import _half

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat)
    assert _half() == expected


def test_half_precision_trains_and_leaves_a_network_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    network, single, kinds = plain(), plain(), set()
    network[1].register_forward_hook(lambda *parts: kinds.add((network.training, parts[2].dtype)))
    before = vars(network).keys()
    history = fit(
        network, FastTraining(BALL), epochs=20, accelerator=engine(half=True), validation=fit.keywords["data"]
    )
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    assert vars(network).keys() == before
    assert all(value.dtype == torch.float32 for value in network.parameters())
    reference = fit(single, FastTraining(BALL), epochs=20)
    assert history[-1].loss == pytest.approx(reference[-1].loss, abs=0.05)
    assert not same(network.state_dict(), single.state_dict())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"Accelerate: pip install 'advcourse\[train\]'"):
        engine()
