import pytest

from strategies import SignFlip


def test_an_update_is_turned_round_and_scaled(now, upload, rows):
    sent = SignFlip(scale=2.0).corrupt(upload, now)
    # 1 - 2 (1.5 - 1), -2 - 2 (-3 + 2) and 0.5 - 2 (0.25 - 0.5); statistics go up as they are.
    assert {k: v.tolist() for k, v in sent.arrays.items()} == {
        "w": [0.0, 0.0],
        "b": [1.0],
        "running_var": [2.0],
    }
    assert SignFlip().poison(rows, 3) is rows


def test_the_mean_turns_round_where_attackers_outweigh_the_others(now, upload):
    """8 honest clients and 2 that attack, all with the same update: 0.8 - 0.2 s of it is left."""
    for scale, left in ((1.0, 0.6), (4.0, 0.0), (10.0, -1.2)):
        bad = SignFlip(scale).corrupt(upload, now).arrays["w"]
        mean = 0.8 * upload.arrays["w"] + 0.2 * bad - now.received["w"]
        assert mean.tolist() == pytest.approx(
            (left * (upload.arrays["w"] - now.received["w"])).tolist(), abs=1e-6
        )


@pytest.mark.parametrize("scale", [0, -1, float("nan")])
def test_scales_that_are_no_attack(scale):
    with pytest.raises(ValueError, match=r"^scale: must be above 0, got "):
        SignFlip(scale)
