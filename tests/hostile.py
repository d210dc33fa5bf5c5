"""Invalid values, and a check of the error that they raise."""

from __future__ import annotations

import torch
from hypothesis import strategies as st


HUGE = st.sampled_from([10**30, 1e308, 5e-324])
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | HUGE
NESTED = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
ODD = st.binary(max_size=3) | st.complex_numbers() | st.builds(torch.ones, st.integers(1, 3)) | st.just(object)
JUNK = NESTED | ODD | st.dictionaries(st.integers(), ATOMS, max_size=2) | st.tuples(ATOMS, ATOMS)


def assert_one_sentence(error: BaseException, *names: str) -> None:
    """Check that `error` is a `ValueError` with a message of one readable line that contains one of `names`."""
    text = str(error)
    assert isinstance(error, ValueError)
    assert text.strip()
    assert len(text.splitlines()) == 1
    assert len(text) < 3000
    assert any(name in text for name in names), text
