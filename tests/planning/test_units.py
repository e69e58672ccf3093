"""Units of a plan's figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdseg.planning.units import bytes_text, count_text, figure_text, time_text

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *[(0, "0 s"), (0.01234, "0.0123 s"), (59.94, "59.9 s"), (59.96, "1 min"), (90, "1.5 min"), (3599.9, "1 h")],
        *[(7200, "2 h"), (86400, "1 d"), (1e9, "11,574 d")],
    ],
)
def test_times_have_the_unit_that_suits_them(seconds, expected):
    assert time_text(seconds) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (999_949, "1 MB"), (37_800_000, "37.8 MB"), (1.2e18, "1,200 PB")],
)
def test_bytes_have_the_unit_that_suits_them(size, expected):
    assert bytes_text(size) == expected


def test_counts_have_no_unit():
    assert [count_text(count) for count in (0, 16, 2_500_000, 10**15)] == ["0", "16", "2.5 M", "1 P"]
    assert (figure_text(0.01234), figure_text(12345.6)) == ("0.0123", "12,346")


@given(st.floats(1, 1e18), st.sampled_from([(bytes_text, SIZES), (time_text, SECONDS)]))
def test_a_text_is_its_value_to_three_digits(value, how):
    text, units = how
    figure, unit = text(value).split(" ")
    assert float(figure.replace(",", "")) * units[unit] == pytest.approx(value, rel=6e-3)
    larger = [size for size in units.values() if size > units[unit]]
    assert not larger or value < min(larger)
