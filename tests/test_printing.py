"""Numbers as printed."""

import pytest

from haemex.printing import interval, minus_signs, number, percent, setting, share, span


def test_numbers_as_printed():
    assert number(0.545) == "0.55" and number(-0.5, 1) == "−0.5" and number(None) == "N/A"
    row = {"x": 0.8, "x_lower": 0.7, "x_upper": 0.904, "y": 0.0, "y_lower": None, "y_upper": None}
    assert interval(row, "x") == "0.80 (0.70 to 0.90)"
    assert interval(row, "y") == "0.00 (N/A)"
    assert interval({"z": None, "z_lower": None, "z_upper": None}, "z") == "N/A"
    assert setting([256, 256, 32]) == "256 × 256 × 32" and setting([20, 30]) == "20, 30" and setting(True) == "yes"
    assert span([20.0, 24.0]) == "20 to 24"
    assert span([-10.0, 100.0]) == "−10 to 100" and span(["2018-09-01", "2019-10-31"]).count("\u2011") == 4
    assert percent(None) == "N/A" and percent(0.0855) == "8.6 %" and share(22, 77) == "22 of 77 (28.6 %)"
    assert share(0, 0) == "0 of 0"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("-0.175", "−0.175"),
        ("(95 % interval -0.175 to -.3)", "(95 % interval −0.175 to −.3)"),
        ("a = -3, b=-4; [-1, -2]", "a = −3, b=−4; [−1, −2]"),
        ("-200 to -50 HU", "−200 to −50 HU"),
        *(
            (same, same)
            for same in ("2018-09-01", "1e-3", "rate_1e-3", "out-of-fold", "5 - 3", "10-20 mL", "- x", "--")
        ),
    ],
)
def test_a_hyphen_becomes_a_minus_before_a_number_alone(text, printed):
    assert minus_signs(text) == printed


def test_only_plain_text_gets_minus_signs():
    from markupsafe import Markup

    assert minus_signs(Markup("-1")) == "-1" and minus_signs(-1) == -1 and minus_signs(None) is None
