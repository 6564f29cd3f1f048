"""Settings of the stage `convert`, and which of them each kind of source takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shortlist.config import NotInJob, SpeedOnly, defaults, flag_of
from shortlist.errors import UserError
from shortlist.text.chunks import By

OF_CLICKS = ("position_bias", "min_clicks", "min_rate", "skip_missing")
OF_DOCUMENTS = ("chunks", "chunk_size", "overlap", "tokenizer", "skip_bad", "workers")
OF_TRAINING = ("to", "collection", "split", "allow_pickle")
"""Settings that only click logs, only documents, and all but documents take."""
OF_STORES = ("arrays", "impacts", "ciff", "sparsevec")
"""Layouts that the stores of `shortlist encode` alone become."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sources: tyro.conf.Positional[tuple[str, ...]]
    """Sources to read: folders or files of documents (Markdown, HTML, PDF and others), one collection, files (JSONL,
    TSV, CSV, Parquet) or `hf:` names of training data or of click logs, Tevatron's pickled vectors, or vectors from
    `encode`. Kind and layout are recognized by names and contents; several sources are read as one."""
    out: NotInJob[Path]
    """Folder to write: a collection with groups.jsonl, train.jsonl for another tool, vectors, or arrays of them."""
    as_: Annotated[Literal["documents", "training", "clicks", "feedback"] | None, tyro.conf.arg(name="as")] = None
    """What the sources are: `documents` are files to search in, each of which becomes chunks; `training` is training
    data, a collection or vectors, `clicks` a click log, `feedback` lists that people copied from or disliked (None:
    seen from names and contents)."""
    to: Literal[
        "shortlist",
        "tevatron",
        "tevatron-old",
        "sentence-transformers",
        "flagembedding",
        "arrays",
        "impacts",
        "ciff",
        "sparsevec",
    ] = "shortlist"
    """Layout to write; `tevatron` has ids, with a corpus beside them, and `tevatron-old` has passages. `arrays` is for
    vectors from `encode`: plain NumPy files. For term weights: `impacts`, JSON lines that Anserini and Pyserini read;
    `ciff`, an inverted index that PISA and others read; `sparsevec`, which pgvector loads."""
    collection: str | None = None
    """Collection with the documents (and queries) of the ids in the sources: folder, `irds:` or `hf:` name. Of sources
    with texts, those that are a document's text there become that document."""
    split: str | tuple[str, ...] = "train"
    """Split whose queries and judgements are read from a collection; training data becomes a split of this name. Or
    shares of the queries, such as `train=.7 dev=.15 test=.15`: the query's text decides, and groups are those of the
    first split."""
    columns: tuple[str, ...] = ()
    """Columns that have unusual names: of a click log, such as `query=term document=item`, the others are position,
    clicks and impressions; of tables of documents, such as `text=body title=name id=sku url=link`."""
    position_bias: tuple[float, ...] = ()
    """Probability that position 1, 2, 3 and so on is looked at, by which each click is divided; the last one counts for
    all positions below. Needs a column of positions."""
    min_clicks: float = 1.0
    """Fewest clicks, after --position-bias, that make a document relevant to a query."""
    min_rate: float = 0.0
    """Fewest clicks per impression that make a document relevant to a query. Needs a column of impressions."""
    skip_missing: NotInJob[bool] = False
    """Leave out and count clicked or copied documents that the collection lacks, instead of refusing."""
    chunks: By = "headings"
    """Where documents are divided: sections under `headings` are packed together, and cut between paragraphs or
    sentences where they are too long; between `sentences`; after any number of `tokens`; or not at all (`none`)."""
    chunk_size: int = 200
    """Most words in a chunk, or tokens of --tokenizer; its titles come beside them."""
    overlap: int = 0
    """Most words (tokens) at the end of a chunk that the next one repeats, where a section is cut."""
    tokenizer: str | None = None
    """Model, by folder or hub name, whose tokens are counted (None: words)."""
    skip_bad: NotInJob[bool] = False
    """Leave out files and records that cannot be read, count them and list them in skipped.txt, instead of stopping."""
    workers: SpeedOnly[int | None] = None
    """Processes that read files of documents (None: one for each core, where there are many megabytes)."""
    factor: float = 100.0
    """What weights are multiplied by before they are rounded to whole numbers (impacts, ciff)."""
    allow_pickle: NotInJob[bool] = False
    """Read pickled vectors. A pickle can run any code; here it may only rebuild arrays, and is refused if it asks for
    more."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def refuse_given(config: Config, names: Iterable[str], found: str, words: str) -> None:
    """Refuse settings that are of no use for what the sources hold.

    Args:
        words: what to say of them; `{}` stands for their flags.

    Raises:
        UserError: one of them is not at its default.
    """
    known = defaults(Config)
    if given := [name for name in names if getattr(config, name) != known[name]]:
        raise UserError(f"{config.sources[0]}: holds {found}, {words.format(', '.join(map(flag_of, given)))}")
