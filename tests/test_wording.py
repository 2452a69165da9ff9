import pytest

from dcamt.wording import number_of, percent


@pytest.mark.parametrize(
    ("fraction", "digits", "text"),
    [(0.125, 2, "12.50 %"), (1, 1, "100.0 %"), (-0.2, 0, "-20 %"), (-0.001, 0, "0 %")],
)
def test_percent(fraction, digits, text):
    assert percent(fraction, digits) == text


def test_one_has_no_plural():
    assert [number_of(n, "test case") for n in range(3)] == [
        "0 test cases",
        "1 test case",
        "2 test cases",
    ]
