"""RAdam's rectification against tabulated values (Liu et al. 2020) and 50-digit decimals."""

from itertools import pairwise

import pytest

from hf_warmup.schedules.warmups import r_t, rho_inf, rho_t

from .reference.optimizers import rectification


BETAS = (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)


def test_rho_t_at_beta2_0999_matches_the_table():
    assert [round(rho_t(t, 0.999), 3) for t in range(1, 7)] == [1.0, 1.999, 2.999, 3.997, 4.996, 5.994]
    assert rho_inf(0.999) == pytest.approx(1999)


@pytest.mark.parametrize(
    ("t", "expected", "digits"),
    [(6, 0.02582, 5), (10, 0.0490, 4), (100, 0.2153, 4), (1000, 0.6453, 4), (10_000, 0.99977, 5)],
)
def test_r_t_at_beta2_0999_matches_the_table(t, expected, digits):
    assert round(r_t(t, 0.999), digits) == expected


@pytest.mark.parametrize("beta2", [0.7, *BETAS])
def test_r_t_equals_50_digit_decimals(beta2):
    # rho_t is a difference of numbers near rho_inf: float64 keeps 16 digits less log10(rho_inf) of them
    for t in [*range(1, 200), 1000, 5000, 20_000]:
        assert r_t(t, beta2) == pytest.approx(rectification(t, beta2), rel=1e-10, abs=0)


@pytest.mark.parametrize("beta2", BETAS)
def test_r_t_is_positive_from_update_6_on(beta2):
    assert [r_t(t, beta2) > 0 for t in range(1, 8)] == [False] * 5 + [True] * 2


@pytest.mark.parametrize("beta2", BETAS)
def test_r_t_rises_to_1(beta2):
    values = [r_t(t, beta2) for t in range(1, 2000)]
    assert all(0 <= value <= after + 1e-12 <= 1 + 1e-12 for value, after in pairwise(values))
    assert r_t(10**9, beta2) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.6, 0.66])
def test_r_t_is_0_if_rho_inf_is_at_most_5(beta2):
    assert [r_t(t, beta2) for t in (1, 6, 100, 10**9)] == [0.0] * 4
