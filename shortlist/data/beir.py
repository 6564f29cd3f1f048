"""Facts about the BEIR data sets, beyond their files: https://arxiv.org/abs/2104.08663."""

from pathlib import Path
from typing import NamedTuple


class BeirSet(NamedTuple):
    """One of the public data sets of BEIR."""

    name: str
    """Name of its folder, as in `irds:beir/NAME` and `hf:BeIR/NAME`."""
    split: str = "test"
    """The split that published scores are measured on."""
    shares_ids: bool = False
    """Whether queries are also documents with the same id; a query must then not find itself."""
    parts: tuple[str, ...] = ()
    """Sub-folders that are separate collections; the score of the set is the mean of their scores."""


CQADUPSTACK = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)

BRIGHT = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living"),
    *("leetcode", "pony", "aops", "theoremqa_questions", "theoremqa_theorems"),
)
"""The tasks of BRIGHT, collections that are averaged: https://arxiv.org/abs/2407.12883."""

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
    """Return the BEIR data set that a collection's name stands for, or None.

    A folder is recognised by its name (`data/arguana`; `cqadupstack/android`), an `irds:` name by the id
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
    """Whether a query and the document with the same id are one and the same.

    This is true of ArguAna and Quora. Elsewhere equal ids mean nothing: both queries and passages of MS MARCO are
    numbered. https://github.com/beir-cellar/beir/issues/72
    """
    known = beir_set(collection)
    return known is not None and known.shares_ids


JOINT = {
    "irds:beir/cqadupstack": ("/", CQADUPSTACK),
    "hf:mteb/cqadupstack": ("-", CQADUPSTACK),
    "hf:xlangai/BRIGHT": ("/", BRIGHT),
    "hf:xlang-ai/BRIGHT": ("/", BRIGHT),
}
"""Names of several collections: what joins such a name and that of a part, and the parts."""


def parts_of(collection: str) -> list[str]:
    """List the names of the collections that this one consists of.

    CQADupStack and BRIGHT have twelve; any other collection consists of itself alone. CQADupStack is
    `irds:beir/cqadupstack`, `hf:mteb/cqadupstack`, or a folder without a corpus that is called `cqadupstack` or holds
    folders of all twelve.
    """
    kind = collection.partition(":")[0]
    if kind in ("irds", "hf"):
        joint, parts = JOINT.get(collection, ("", (collection,)))
        return [f"{collection}{joint}{part}" if joint else part for part in parts]
    folder = Path(collection)
    if not folder.is_dir() or any((folder / f"corpus.jsonl{gz}").exists() for gz in ("", ".gz")):
        return [collection]
    named = folder.absolute().name.casefold() == "cqadupstack"
    whole = named or all((folder / part).is_dir() for part in CQADUPSTACK)
    return [str(folder / part) for part in CQADUPSTACK] if whole else [collection]


def is_whole(irds_id: str) -> bool:
    """Whether an ir_datasets id names a whole data set of BEIR, with a corpus.

    `beir/scifact` and `beir/webis-touche2020/v2` do; the id of a split does not. Judgements held under such an id
    belong to its test split.
    """
    return irds_id.startswith("beir/") and irds_id.rpartition("/")[2] not in SPLITS
