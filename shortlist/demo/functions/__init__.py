"""Stage `functions`: a collection of Python functions and the sentences that describe them."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from sys import version

from shortlist.config import NotInJob, flag_of
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.demo.functions.fingerprints import write_fingerprints
from shortlist.demo.functions.overlap import Overlap, normalized
from shortlist.demo.functions.sources import (
    Function,
    build_test,
    collect_functions,
    hold_out,
    installed_packages,
    keep_apart,
    sample,
    wheel_sources,
    write_train,
)
from shortlist.demo.functions.wheels import Pin, download, read_pins
from shortlist.errors import UserError

STANDARD = "standard-library"
INSTALLED = "installed"


@dataclass(frozen=True, kw_only=True)
class Config:
    sources: str
    """`standard-library`: this Python's own modules, a collection to search with splits `test` and `dev`. To learn
    from, with splits `train`, `dev` and `mined`: `installed`, the packages installed beside this one, or a file that
    lists packages in pip's requirements form, each line `name==version --hash=sha256:... # licence`; their wheels are
    downloaded and read, but never run."""
    out: NotInJob[Path]
    """Folder for the collection. A collection to learn from also gets sources.tsv, which counts what each package gave,
    and fingerprints.npz, hashes of all summaries and bodies."""
    apart_from: Path | None = None
    """Collection folder: functions with one of its summaries, or nearly the same as one of its functions, are left
    out."""
    max_pairs: int = 1_000_000
    """Largest number of pairs to learn from; if there are more, a sample is taken."""
    dev: int = 500
    """Largest number of pairs in split `dev`. In a collection to learn from, they are whole packages, and `train` has
    nothing from these packages and no near copy of it."""
    mined: int = 5_000
    """Number of pairs in split `mined`: a sample of `train`, to mine negatives for."""
    cache: NotInJob[Path | None] = None
    """Folder for downloads, which are used again if they are there; None: a folder `OUT.downloads` beside --out."""
    seed: int = 0
    """Seed of all random choices."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Find the sources, read them, and write the collection."""
    for name in ("max_pairs", "dev", "mined"):
        if getattr(config, name) < 0:
            raise UserError(f"{flag_of(name)} is {getattr(config, name)}; expected 0 or more.")
    pins = [] if config.sources in (STANDARD, INSTALLED) else read_pins(Path(config.sources))
    inputs: dict[str, str | Sequence[str]] = {"sources": identity_of(config.sources, pins)}
    if config.apart_from is not None:
        if not (config.apart_from / "corpus.jsonl").is_file() or not (config.apart_from / "queries.jsonl").is_file():
            raise UserError(f"--apart-from {config.apart_from}: expected a folder with corpus.jsonl and queries.jsonl.")
        inputs["apart_from"] = identity(config.apart_from)
    job = start_job(config, JobSpec("functions", inputs, folder=True))
    if job.done:
        return
    if config.sources == STANDARD:
        with job.result() as folder:
            made = build_test(folder, num_dev=config.dev, seed=config.seed)
        job.finish(made)
        return
    if pins:
        wheels = download(pins, config.cache or config.out.with_name(f"{config.out.name}.downloads"))
        sources = [s for pin, wheel in zip(pins, wheels, strict=True) for s in wheel_sources(wheel, pin.name)]
    else:
        sources = installed_packages()
    functions, counts = collect_functions(sources, "reading")
    pairs, dropped = keep_apart(functions, config.apart_from)
    pairs = sample(pairs, config.max_pairs, config.seed)
    held_out = hold_out(pairs, config.dev, config.seed)
    pairs, dropped["dev_bodies"] = without_copies(pairs, held_out)
    texts = (text for function in pairs for text in (normalized(function.summary), function.body))
    with job.result() as folder:
        splits = write_train(folder, pairs, held_out=held_out, num_mined=config.mined, seed=config.seed)
        write_sources(folder / "sources.tsv", functions, pairs, {pin.name: pin for pin in pins})
        write_fingerprints(folder / "fingerprints.npz", texts)
    job.finish(counts | dropped | {"pairs": len(pairs)} | splits)


def identity_of(sources: str, pins: Iterable[Pin]) -> list[str]:
    """Identify the sources: by the versions of what is installed, or a list's hashes."""
    if sources == INSTALLED:
        return sorted(f"{d.name}=={d.version}" for d in distributions())
    return [version] if sources == STANDARD else [" ".join(pin.hashes) for pin in pins]


def without_copies(pairs: Sequence[Function], held_out: set[str]) -> tuple[list[Function], int]:
    """Drop pairs that resemble a pair in the held-out packages.

    Pairs of the held-out packages themselves are kept.

    Returns:
        The pairs that are kept, and the number dropped.
    """
    overlap = Overlap(function.body for function in pairs if function.package in held_out)
    kept = [f for f in pairs if f.package in held_out or not overlap.near(f.body)]
    return kept, len(pairs) - len(kept)


def write_sources(
    path: Path, functions: Iterable[Function], pairs: Iterable[Function], pins: Mapping[str, Pin]
) -> None:
    """Write a table of packages, with the number of functions and pairs from each.

    The functions are those with a summary. Version and licence are given where a list says them.
    """
    found, kept = (Counter(function.package for function in group) for group in (functions, pairs))
    with atomic_write(path) as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["package", "version", "licence", "functions", "pairs"])
        for package in sorted({*found, *pins}):
            pin = pins.get(package)
            said = [pin.version, pin.licence] if pin else ["", ""]
            table.writerow([package, *said, found[package], kept[package]])
