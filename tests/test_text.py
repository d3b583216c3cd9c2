from hypothesis import given
from hypothesis import strategies as st

from product_classificator.text import clean, identity_of, words_of


def test_lone_surrogates_are_dropped_since_no_store_can_hold_them():
    assert clean("часы\ud800 наручные") == "часы наручные"


def test_decimal_numbers_stay_whole():
    assert words_of("1,5 л и 2.0") == ["1,5", "л", "и", "2.0"]


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    assert clean(clean(text)) == clean(text)


@given(st.text())
def test_identity_ignores_case_and_spacing(text):
    assert identity_of(text.upper().lower()) == identity_of(f"  {text.upper().lower()} !")
