"""Pickled vectors of Tevatron become a store of vectors."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shortlist.convert.settings import Config
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.pickles import write_embeddings
from shortlist.errors import UserError
from shortlist.progress import say


def convert_vectors(config: Config) -> None:
    """Write the vectors of all sources into one store."""
    _check_pickles(config)
    inputs = {"sources": list(map(identity, config.sources))}
    job = start_job(config, JobSpec("convert", inputs, as_if=replace(config, as_=None), folder=True))
    if not job.done:
        with job.result() as folder:
            counts = _write_vectors(config.sources, folder)
        job.finish(counts)


def _check_pickles(config: Config) -> None:
    if not config.allow_pickle:
        raise UserError(
            f"{config.sources[0]}: is a pickle, and reading one can run any code that is in it; if you trust where it "
            "comes from, add --allow-pickle."
        )
    if config.to != "shortlist" or config.collection:
        raise UserError(f"{config.sources[0]}: holds vectors; --to and --collection are of no use, leave them out.")
    say(
        "convert: --allow-pickle: a pickle can run any code when it is read. Here it may only rebuild arrays, and is "
        "refused if it asks for more; still, read none from a source that you do not trust."
    )


def _write_vectors(sources: Sequence[str], out: Path) -> dict[str, int]:
    results = write_embeddings(sources, out)
    say("convert: nothing says which model made these vectors; search them with --model and --contract of that one.")
    return results
