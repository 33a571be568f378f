from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.judge.over_optimisation import (
    Curves,
    along_training,
    best_of_n,
    from_pool,
    kl_of_best,
    over_optimisation,
)


def by_hand(proxy: np.ndarray, gold: np.ndarray, n: int) -> tuple[float, float]:
    """Return the mean over all subsets of n of what its best has, any of the best alike."""
    found = []
    for some in combinations(range(len(proxy)), n):
        most = max(proxy[list(some)])
        found.append((most, np.mean([gold[i] for i in some if proxy[i] == most])))
    return tuple(np.mean(found, axis=0))


def test_the_best_of_n_is_the_mean_over_all_subsets_ties_included() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, (3, 8)).astype(float), rng.normal(size=(3, 8))
    curves = best_of_n(proxy_PN=proxy, gold_PN=gold)
    assert list(curves.at) == [1, 2, 3, 4, 6, 8]
    for row in range(3):
        for place, n in enumerate(curves.at):
            expected = by_hand(proxy[row], gold[row], n)
            assert curves.proxy_PK[row, place] == pytest.approx(expected[0])
            assert curves.gold_PK[row, place] == pytest.approx(expected[1])


def test_ties_count_as_their_mean_over_all_orders() -> None:
    proxy, gold = np.zeros((1, 4)), np.array([[0.0, 1.0, 2.0, 5.0]])
    assert best_of_n(proxy_PN=proxy, gold_PN=gold).gold_PK == pytest.approx(2.0)


def test_the_largest_pools_have_weights_that_add_up() -> None:
    curves = best_of_n(proxy_PN=np.arange(256.0)[None], gold_PN=np.ones((1, 256)))
    assert curves.at[-1] == 256 and curves.gold_PK == pytest.approx(1.0)
    assert curves.proxy_PK[0, -1] == pytest.approx(255) and curves.proxy_PK[0, 0] == pytest.approx(
        127.5
    )
    assert np.mean(np.diff(curves.proxy_PK[0]) > 0) == 1
    # A pool of another size is looked at whole, at most 256 of it at a time.
    assert best_of_n(proxy_PN=np.ones((1, 300)), gold_PN=np.ones((1, 300))).at[-1] == 256
    assert best_of_n(proxy_PN=np.ones((1, 11)), gold_PN=np.ones((1, 11))).at[-1] == 11


def test_the_kl_of_the_best_of_n() -> None:
    assert [kl_of_best(n) for n in (1, 2, 4)] == pytest.approx([0, 0.1931, 0.6363], abs=1e-4)


def curves_of(kl: np.ndarray, gold: np.ndarray, *, noise: float, prompts: int = 200) -> Curves:
    """Return curves of prompts that differ in level, and by noise at each point."""
    rng = np.random.default_rng(3)
    level = rng.normal(size=(prompts, 1))
    proxy = 0.5 * np.sqrt(kl)

    def around(mean: np.ndarray) -> np.ndarray:
        return mean + level + noise * rng.normal(size=(prompts, len(kl)))

    kl_PK = kl + 0.1 * noise * rng.normal(size=(prompts, len(kl)))
    return Curves(range(0, 5 * len(kl), 5), kl_PK, around(gold), around(proxy))


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("d(alpha - beta d)", lambda d: d * (0.6 - 0.1 * d)),
        ("d(alpha - beta log d)", lambda d: d * (0.6 - 0.3 * np.log(np.maximum(d, 1e-9)))),
    ],
)
def test_fits_find_the_curve_that_is_there_and_cover_it(form: str, shape: Any) -> None:
    kl = np.linspace(0, 36, 12)
    alpha, beta = 0.6, {"d(alpha - beta d)": 0.1, "d(alpha - beta log d)": 0.3}[form]
    told = over_optimisation(curves_of(kl, shape(np.sqrt(kl)), noise=0.0), source="ppo")
    fit = next(f for f in told["fits"] if (f["judge"], f["form"]) == ("gold", form))
    assert [fit["alpha"], fit["beta"]] == pytest.approx([alpha, beta])
    noisy = over_optimisation(curves_of(kl, shape(np.sqrt(kl)), noise=0.5), source="ppo")
    fit = next(f for f in noisy["fits"] if (f["judge"], f["form"]) == ("gold", form))
    assert fit["alpha_ci95"][0] < alpha < fit["alpha_ci95"][1]
    assert fit["beta_ci95"][0] < beta < fit["beta_ci95"][1]


def test_the_turn_of_gold_is_told_with_the_update_to_take() -> None:
    kl = np.linspace(0, 36, 10)
    gold = np.sqrt(kl) * (0.6 - 0.1 * np.sqrt(kl))
    told = over_optimisation(curves_of(kl, gold, noise=0.3), source="ppo")
    best = int(np.argmax(gold)) * 5
    assert told["turn"]["step"] == pytest.approx(best, abs=5)
    assert told["sentence"].startswith(f"proxy went on rising from KL {told['turn']['kl']:.1f} on")
    assert told["sentence"].endswith(f"take update {told['turn']['step']}")
    assert told["points"][0]["gold_ci95"][0] < told["points"][0]["gold"]


def test_a_curve_that_rises_gives_no_sign() -> None:
    kl = np.linspace(0, 4, 6)
    told = over_optimisation(curves_of(kl, np.sqrt(kl), noise=0.5), source="ppo")
    assert told["turn"] is None
    assert told["sentence"] == "no sign of over-optimisation up to KL 4.0 (200 prompts)"


def test_of_a_policy_that_did_not_move_nothing_is_told() -> None:
    kl = np.linspace(0, 0.01, 6)
    told = over_optimisation(curves_of(kl, np.zeros(6), noise=0.5), source="ppo")
    assert told["turn"] is None
    assert told["sentence"] == (
        "KL is 0.016 at most: of over-optimisation nothing can be told yet (200 prompts)"
    )


def test_proxy_that_falls_with_gold_is_no_over_optimisation_alone() -> None:
    kl = np.linspace(0, 9, 5)
    curves = curves_of(kl, -kl, noise=0.1)._replace(proxy_PK=np.tile(-kl, (200, 1)))
    assert "and proxy with it" in over_optimisation(curves, source="ppo")["sentence"]


def test_flat_curves_are_called_a_turn_one_time_in_twenty() -> None:
    rng, found = np.random.default_rng(0), 0
    for seed in range(150):
        level = rng.normal(size=(60, 1))
        flat = level + rng.normal(size=(60, 10))
        curves = Curves(range(10), np.tile(np.arange(10.0), (60, 1)), flat, flat)
        told = over_optimisation(curves, source="ppo", resamples=200, seed=seed)
        found += told["turn"] is not None
    assert 1 <= found <= 15


def test_two_points_have_no_fit_and_one_evaluation_is_no_curve() -> None:
    rows = [
        {"update": u, "index": i, "kl": 1.0 * u, "gold": 0.5, "proxy": 1.0}
        for u in (0, 5)
        for i in range(4)
    ]
    told = along_training(rows)
    assert told is not None and told["fits"] == [] and told["turn"] is None
    assert along_training(rows[:4]) is None
    assert along_training([{**row, "gold": None} for row in rows]) is None


def test_a_pool_is_read_from_its_rows_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"index": i, "sample": s, "proxy": float(rng.normal()), "gold": float(rng.normal())}
        for i in range(3)
        for s in range(8)
    ]
    told = from_pool(rows, resamples=100)
    assert [point["n"] for point in told["points"]] == [1, 2, 3, 4, 6, 8]
    assert told == from_pool(rows[::-1], resamples=100)
    mean = np.mean([max(r["proxy"] for r in rows if r["index"] == i) for i in range(3)])
    assert told["points"][-1]["proxy"] == pytest.approx(mean)
