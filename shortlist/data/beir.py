"""What must be known of BEIR's data sets, beside what their files say: https://arxiv.org/abs/2104.08663."""

from pathlib import Path
from typing import NamedTuple


class BeirSet(NamedTuple):
    """One of the public data sets of BEIR."""

    name: str
    """As its folder is called: `irds:beir/NAME`, `hf:BeIR/NAME`."""
    split: str = "test"
    """What published scores are of."""
    shares_ids: bool = False
    """Queries are documents too, with the same id: a query must not find itself."""
    parts: tuple[str, ...] = ()
    """Sub-folders that are collections of their own; the score is the mean of theirs."""


CQADUPSTACK = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)

SETS = {
    known.name: known
    for known in (
        BeirSet("arguana", shares_ids=True),
        BeirSet("climate-fever"),
        BeirSet("cqadupstack", parts=CQADUPSTACK),
        BeirSet("dbpedia-entity"),
        BeirSet("fever"),
        BeirSet("fiqa"),
        BeirSet("hotpotqa"),
        BeirSet("msmarco", split="dev"),
        BeirSet("nfcorpus"),
        BeirSet("nq"),
        BeirSet("quora", shares_ids=True),
        BeirSet("scidocs"),
        BeirSet("scifact"),
        BeirSet("trec-covid"),
        BeirSet("webis-touche2020"),
    )
}
SPLITS = ("train", "dev", "test")


def beir_set(collection: str) -> BeirSet | None:
    """The data set of BEIR that a collection is by its name, None if by that it is none.

    A folder is told by what it is called (`data/arguana`; `cqadupstack/android`), an `irds:` name by the id
    (`beir/quora/test`, `nano-beir/quora`), an `hf:` name by the last part of the id (`BeIR/arguana`).
    """
    kind, _, rest = collection.casefold().partition(":")
    if kind == "irds":
        suite, _, name = rest.partition("/")
        return SETS.get(name.partition("/")[0]) if suite in ("beir", "nano-beir") else None
    if kind == "hf":
        name = rest.rstrip("/").rpartition("/")[2]
        return SETS.get("cqadupstack" if name.startswith("cqadupstack-") else name)
    folder = Path(collection).absolute()
    above = SETS.get(folder.parent.name.casefold())
    return above if above and folder.name in above.parts else SETS.get(folder.name.casefold())


def shares_ids(collection: str) -> bool:
    """Whether a query of this collection and the document of the same id are one and the same.

    So it is in ArguAna and Quora. Elsewhere equal ids say nothing: both queries and passages of MS MARCO are numbered.
    https://github.com/beir-cellar/beir/issues/72
    """
    known = beir_set(collection)
    return known is not None and known.shares_ids


def parts_of(collection: str) -> list[str]:
    """The names of the collections that this one consists of: CQADupStack's twelve, itself for any other.

    CQADupStack is `irds:beir/cqadupstack`, `hf:mteb/cqadupstack`, and a folder that is called `cqadupstack`, or holds
    folders of all twelve, and has no corpus of its own.
    """
    kind = collection.partition(":")[0]
    if kind in ("irds", "hf"):
        joint = {"irds:beir/cqadupstack": "/", "hf:mteb/cqadupstack": "-"}.get(collection)
        return [f"{collection}{joint}{part}" for part in CQADUPSTACK] if joint else [collection]
    folder = Path(collection)
    if not folder.is_dir() or any((folder / f"corpus.jsonl{gz}").exists() for gz in ("", ".gz")):
        return [collection]
    named = folder.absolute().name.casefold() == "cqadupstack"
    whole = named or all((folder / part).is_dir() for part in CQADUPSTACK)
    return [str(folder / part) for part in CQADUPSTACK] if whole else [collection]


def is_whole(irds_id: str) -> bool:
    """Whether an ir_datasets id is that of a data set of BEIR with a corpus of its own, not of one of its splits.

    `beir/scifact` and `beir/webis-touche2020/v2` are. What it judges itself, it judges as its test split.
    """
    return irds_id.startswith("beir/") and irds_id.rpartition("/")[2] not in SPLITS
