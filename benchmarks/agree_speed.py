"""How fast all pairs of systems are tested: shortlist beside a loop over SciPy's tests, with the same values.

    python benchmarks/agree_speed.py --out benchmarks/agree_speed.md

Values of 37 systems for 43 queries, as of TREC DL 2019, and of 63 systems for 50 queries, as of TREC-COVID, made up
with effects of systems and of queries. Each side tests all pairs in one process, in turns; of Tukey's test, which takes
SciPy many milliseconds a pair, the loop does the first pairs alone, and its time is scaled to all. The t-tests and
Tukey's test must give the same p-values to 1e-9. The randomisation tests draw other samples: they must agree as two
draws do.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from measuring import conditions, publish, table, turns
from scipy import stats

from shortlist.math.all_pairs import SystemValues, pairs_of, randomisation_tests, t_tests, tukey_hsd
from shortlist.progress import say

SIZES = ((37, 43), (63, 50))


@dataclass(frozen=True, kw_only=True)
class Config:
    resamples: int = 1000
    """Samples of the randomisation tests."""
    rounds: int = 3
    """Times every side runs."""
    tukey_pairs: int = 30
    """Pairs that the loop does of Tukey's test."""
    out: Path | None = None
    """Markdown file to write too."""


def made_up(num_systems: int, num_queries: int) -> SystemValues:
    """Return values between 0 and 1 with effects of systems and queries."""
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 0.08, (num_systems, 1)) + rng.normal(0, 0.2, (1, num_queries))
    return np.clip(0.5 + effects + rng.normal(0, 0.12, (num_systems, num_queries)), 0, 1)


def looped_t(values: SystemValues) -> np.ndarray:
    """Test the pairs one by one."""
    return np.array([stats.ttest_rel(values[a], values[b]).pvalue for a, b in zip(*pairs_of(len(values)), strict=True)])


def looped_randomisation(values: SystemValues, resamples: int) -> np.ndarray:
    """Test the pairs one by one."""
    found = [
        stats.permutation_test(
            (values[a] - values[b],),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        ).pvalue
        for a, b in zip(*pairs_of(len(values)), strict=True)
    ]
    return np.array(found)


def looped_tukey(values: SystemValues, most: int) -> np.ndarray:
    """Look up SciPy's distribution pair by pair, for the first pairs."""
    num_systems, num_queries = values.shape
    means, freedom = values.mean(1), (num_systems - 1) * (num_queries - 1)
    left = values - means[:, None] - values.mean(0)[None] + values.mean()
    noise = np.sqrt((left**2).sum() / freedom / num_queries)
    found = [
        stats.studentized_range.sf(abs(means[a] - means[b]) / noise, num_systems, freedom)
        for a, b in list(zip(*pairs_of(num_systems), strict=True))[:most]
    ]
    return np.array(found)


def compare(values: SystemValues, config: Config) -> str:
    """Time both sides of each test, and compare their values."""
    tests: dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray], float]] = {
        "paired t-test": (lambda: looped_t(values), lambda: t_tests(values), 1e-9),
        f"randomisation, {config.resamples:,} samples": (
            lambda: looped_randomisation(values, config.resamples),
            lambda: randomisation_tests(values, resamples=config.resamples),
            5 * np.sqrt(1.25 / config.resamples),
        ),
        "Tukey's HSD": (lambda: looped_tukey(values, config.tukey_pairs), lambda: tukey_hsd(values), 1e-9),
    }
    rows = []
    for name, (loop, ours, allowed) in tests.items():
        sides, times = {"loop": loop, "ours": ours}, {"loop": list[float](), "ours": list[float]()}
        found: dict[str, np.ndarray] = {}
        for turn in turns(list(sides), config.rounds):
            for side in turn:
                start = time.perf_counter()
                found[side] = sides[side]()
                times[side].append(time.perf_counter() - start)
        done = len(found["loop"])
        difference = np.abs(found["loop"] - found["ours"][:done]).max()
        if difference > allowed:
            raise SystemExit(f"{name}: the p-values differ by {difference:.1e}, where {allowed:.1e} is allowed.")
        loop_s = statistics.median(times["loop"]) * len(found["ours"]) / done
        ours_s = statistics.median(times["ours"])
        rows.append([name, f"{loop_s:.3f}", f"{ours_s:.4f}", f"{loop_s / ours_s:.0f}", f"{difference:.1e}"])
        say(f"{name}: {loop_s:.3f} s in a loop, {ours_s:.4f} s together")
    return table(["test", "loop over SciPy, s", "shortlist, s", "times", "largest difference of p"], rows)


def run(config: Config) -> None:
    """Measure and publish."""
    sections = []
    for num_systems, num_queries in SIZES:
        pairs = num_systems * (num_systems - 1) // 2
        title = f"{num_systems} systems, {num_queries} queries: {pairs:,} pairs"
        sections.append(f"## {title}\n\n{compare(made_up(num_systems, num_queries), config)}")
    under = conditions(None, packages=("numpy", "scipy"))
    publish("Testing all pairs of systems", under, sections, config.out)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
