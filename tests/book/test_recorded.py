"""What chapter 7 draws from a file is what the tool would record now, as far as settings go."""

import torch

from tools.record_hard_label import AT, IMAGES, RACE, WHITE_BOX, recorded


def test_the_race_was_run_with_the_settings_of_today() -> None:
    _, settings = recorded()
    assert settings == {name: str(race) for name, race in RACE.items()} | {"C&W": repr(WHITE_BOX)}


def test_distances_fall_and_end_with_the_budget() -> None:
    kept, _ = recorded()
    assert kept.pop("queries").tolist() == AT
    assert kept.pop("C&W").shape == (IMAGES,)
    for name, (_, budget) in RACE.items():
        distance = kept.pop(name)
        assert distance.shape == (IMAGES, len(AT))
        ran = torch.tensor(AT) <= budget
        assert distance[:, ~ran].isnan().all()
        assert (distance[:, ran] > 0).all()
        assert (distance[:, ran][:, 1:] <= distance[:, ran][:, :-1]).all()
        assert distance[:, ran][:, -1].isfinite().all()
    assert not kept
