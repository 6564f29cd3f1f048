"""Click logs become training data."""

from itertools import chain

from shortlist.config import flag_of
from shortlist.convert.settings import Config
from shortlist.convert.writing import Training, judge_first_split, write_training_data
from shortlist.data.clicks import (
    ClickLog,
    RowParser,
    add_up,
    check_bias,
    check_thresholds,
    choose,
    parse_columns,
    read_clicks,
    with_ids,
)
from shortlist.data.collections import Collection, open_collection
from shortlist.data.groups import contents
from shortlist.data.manifest import identity
from shortlist.data.matching import by_id_or_text
from shortlist.errors import UserError
from shortlist.progress import say, track


def convert_clicks(config: Config) -> None:
    """Write what was clicked as training data."""
    write_training_data(config, _read_clicks, kind="clicks")


def _read_clicks(config: Config) -> Training:
    """Read click logs; say how many pairs there are, and how many are left out."""
    if not config.collection:
        raise UserError(f"{config.sources[0]}: is a click log; name the collection that was clicked with --collection.")
    check_bias(config.position_bias)
    check_thresholds(config.min_clicks, config.min_rate)
    users = {"position": ("position_bias", config.position_bias), "impressions": ("min_rate", config.min_rate)}
    used_by = {kind: flag_of(name) for kind, (name, value) in users.items() if value}
    parser = RowParser(parse_columns(config.columns), used_by)
    collection = open_collection(config.collection)
    rows = chain.from_iterable(read_clicks(source, parser) for source in config.sources)
    log = add_up(track(rows, "reading", unit="rows"), config.position_bias)
    if not log:
        raise UserError(f"{', '.join(config.sources)}: no rows; expected at least one, after the header of a table.")
    num_queries = len(log)
    log = with_ids(log, _documents_of(config, collection, log))
    chosen = choose(log, min_clicks=config.min_clicks, min_rate=config.min_rate)
    say(
        f"convert: {chosen.pairs:,} pairs of a query and a document, {chosen.clicked:,} of them clicked; left out "
        f"{chosen.few_clicks:,} by --min-clicks {config.min_clicks:g} and {chosen.low_rate:,} by --min-rate "
        f"{config.min_rate:g}; {len(chosen.groups):,} of {num_queries:,} queries have a pair left."
    )
    if "impressions" in parser.kinds:
        say(f"convert: {chosen.doubtful:,} of the clicked pairs have fewer than 1 click per 100 impressions.")
    if not chosen.groups:
        raise UserError(
            f"{', '.join(config.sources)}: no pair is left; expected clicks enough for the flags said above."
        )
    on_hub = any(source.startswith("hf:") for source in config.sources)
    inputs: dict[str, str | list[str]] = {
        "sources": [contents(chosen.groups, chosen.queries)] if on_hub else list(map(identity, config.sources)),
        "collection": collection.identity("corpus"),
    }
    qrels = judge_first_split(config, chosen.groups)
    return Training(chosen.groups, chosen.queries, qrels, collection.corpus, collection, inputs)


def _documents_of(config: Config, collection: Collection, log: ClickLog) -> dict[str, str]:
    """Find the ids of the documents in a log.

    Raises:
        UserError: the collection lacks a clicked document, and `skip_missing` is off.
    """
    named = {document: False for documents in log.values() for document in documents}
    for documents in log.values():
        named |= {document: True for document, counts in documents.items() if counts.clicks}
    doc_ids = by_id_or_text(collection, named)
    missing = [document for document in named if document not in doc_ids]
    gone, clicked = [document for document in missing if named[document]], sum(named.values())
    if gone and not config.skip_missing:
        raise UserError(
            f"{config.collection}: lacks {len(gone):,} of {clicked:,} clicked documents, the first {gone[0]!r:.80}; "
            "expected ids or texts of its documents. Name the collection that was clicked, or leave them out with "
            "--skip-missing."
        )
    if missing:
        say(
            f"convert: {config.collection} lacks {len(gone):,} of {clicked:,} clicked documents and "
            f"{len(missing) - len(gone):,} others; left them out."
        )
    return doc_ids
