"""Feedback on whole lists becomes training data."""

from itertools import chain

from shortlist.convert.settings import Config
from shortlist.convert.writing import Training, judge_first_split, write_training_data
from shortlist.data.collections import open_collection
from shortlist.data.feedback import read_feedback, to_groups
from shortlist.data.groups import contents
from shortlist.data.manifest import identity
from shortlist.data.matching import by_id_or_text
from shortlist.errors import UserError
from shortlist.progress import say, track


def convert_feedback(config: Config) -> None:
    """Write what was copied as training data."""
    write_training_data(config, _read_feedback, kind="feedback")


def _read_feedback(config: Config) -> Training:
    """Read lists that were shown; count each kind, and what was left out."""
    sources = ", ".join(config.sources)
    if not config.collection:
        raise UserError(f"{config.sources[0]}: is feedback; name the collection that was shown with --collection.")
    collection = open_collection(config.collection)
    records = chain.from_iterable(map(read_feedback, config.sources))
    lists = list(track(records, "reading", unit="lists"))
    names = dict.fromkeys(name for shown in lists for name in shown.documents)
    doc_ids = by_id_or_text(collection, names)
    missing = [name for name in names if name not in doc_ids]
    copied = {name for shown in lists for name in shown.copied}
    gone = [name for name in missing if name in copied]
    if gone and not config.skip_missing:
        raise UserError(
            f"{config.collection}: lacks {len(gone):,} of {len(copied):,} copied documents, the first "
            f"{gone[0]!r:.80}; expected ids or texts of its documents. Name the collection that was shown, or leave "
            "them out with --skip-missing."
        )
    made = to_groups(lists, doc_ids)
    counts = ", ".join(f"{count:,} {signal}" for signal, count in made.lists.items())
    say(
        f"convert: {len(lists):,} lists ({counts or 'none'}); {len(made.groups):,} queries have a copied document; "
        f"{made.withdrawn:,} copied documents were disliked in another list, and {len(missing):,} are not in "
        f"{config.collection}: left out."
    )
    if not made.groups:
        raise UserError(f"{sources}: no document was copied; expected a list with the signal `copy`.")
    on_hub = any(source.startswith("hf:") for source in config.sources)
    inputs: dict[str, str | list[str]] = {
        "sources": [contents(made.groups, made.queries)] if on_hub else list(map(identity, config.sources)),
        "collection": collection.identity("corpus"),
    }
    qrels = judge_first_split(config, made.groups)
    return Training(made.groups, made.queries, qrels, collection.corpus, collection, inputs)
