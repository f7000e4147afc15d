from known_core.points import points, signed


def test_differences_are_in_points_and_signed() -> None:
    assert points({"mean": 0.008, "low": -0.0031, "high": 0.01291}) == "+0.80 [-0.31, +1.29]"
    assert points(None) == "–"


def test_what_rounds_to_nothing_is_no_loss() -> None:
    assert [signed(share) for share in (-0.00001, -0.0, 0.0, 0.00001)] == ["+0.00"] * 4
    assert signed(float("nan")) == "+nan"
