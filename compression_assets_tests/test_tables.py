"""Numbers as text: significant digits, even decimals, both ends of an interval."""

import math
import random

import pytest

from compression_assets.tables import bracketed, decimals, fixed, markdown, plain, shown, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (46.178, "46.2"),
        (5886.01, "5,886"),
        (0.09386, "0.0939"),
        (1.0, "1"),
        (2.4e-07, "2.40e-07"),
        (-0.5, "-0.500"),
    ],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_no_number_but_0_is_written_as_0() -> None:
    rng = random.Random(5)
    for _ in range(200):
        value = rng.uniform(1, 10) * 10 ** rng.randint(-12, 6)
        for text in (significant(value), fixed(value, rng.randint(0, 4)), shown(value)):
            assert float(text.replace(",", "")) == pytest.approx(value, rel=0.7), text
    assert fixed(-0.0, 2) == "0.00"


def test_the_middle_of_a_column_decides_its_decimals() -> None:
    values = [35.0, 84.4, 302.1]
    assert decimals(values) == 1 and decimals(values, 4) == 2
    assert decimals([48.0, 0.0, None]) == 0 and decimals([48.0], ends=[47.5]) == 1
    assert decimals([]) == 0
    for exponent in range(-6, 6):
        value = math.pi * 10**exponent
        assert len(fixed(value, decimals([value])).replace(".", "").replace(",", "").lstrip("0")) >= 3


def test_an_interval_has_two_ends() -> None:
    assert bracketed((0.0, 0.0601), 3) == "[0.000, 0.060]"
    assert bracketed((71.99, 98.19), 1) == "[72.0, 98.2]"


def test_tables_are_even_and_right_aligned() -> None:
    rows = [("P", 1.25, None), ("KD", 100.5, 0.25)]
    assert plain(["model", "x", "p"], rows).splitlines() == [
        "model        x       p",
        "─────  ───────  ──────",
        "P        1.250       –",
        "KD     100.500  0.2500",
    ]
    assert markdown(["model", "x"], [row[:2] for row in rows]).splitlines() == [
        "| model | x |",
        "| --- | ---: |",
        "| P | 1.250 |",
        "| KD | 100.500 |",
    ]


def test_what_is_not_finite_is_written_as_it_is() -> None:
    rows = [("a", math.inf), ("b", math.nan), ("c", 1.5), ("d", -math.inf)]
    assert [line.split()[-1] for line in plain(("name", "value"), rows).splitlines()[2:]] == [
        *("inf", "nan", "1.500", "-inf")
    ]
    assert "inf" in markdown(("value",), [(math.inf,)]) and shown(math.nan) == "nan"
