"""Stage `convert`: convert documents, training data, click logs and vectors.

People's own files become a collection of chunks. Training data and vectors of other tools become files of shortlist,
and training data and vectors can be written for other tools. Click logs and feedback on lists become training data.
"""

from collections.abc import Callable
from functools import partial

from shortlist.config import refuse_idle
from shortlist.convert.clicks import convert_clicks
from shortlist.convert.documents import convert_documents
from shortlist.convert.feedback import convert_feedback
from shortlist.convert.settings import OF_CLICKS, OF_DOCUMENTS, OF_STORES, Config, refuse_given
from shortlist.convert.training import convert_collection, convert_records
from shortlist.convert.vectors import convert_vectors
from shortlist.data.clicks import parse_columns
from shortlist.data.sources import CLICKS, COLLECTION, DOCUMENTS, FEEDBACK, PICKLED_VECTORS, STORE, common_layout
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.progress import say

WAYS: dict[str, Callable[[Config], None]] = {
    DOCUMENTS: convert_documents,
    COLLECTION: convert_collection,
    CLICKS: convert_clicks,
    FEEDBACK: convert_feedback,
    PICKLED_VECTORS: convert_vectors,
    STORE: late("convert.arrays", "convert_store"),  # loads PyTorch
}
"""Ways to convert sources, by what they hold; all other layouts are of training data."""


def run(config: Config) -> None:
    """Convert the sources, by what they hold."""
    if config.to not in ("impacts", "ciff"):
        refuse_idle(config, ("factor",), "is for --to impacts and ciff")
    layout = _layout(config)
    WAYS.get(layout, partial(convert_records, layout=layout))(config)


def _layout(config: Config) -> str:
    """Find the layout of the sources; say so where that is a guess."""
    given = {} if config.as_ == "documents" else parse_columns(config.columns)
    layout, first = common_layout(config.sources, config.as_, given), config.sources[0]
    if layout == DOCUMENTS:
        if config.as_ is None:
            say(f"convert: {first}: read as documents to search in, by the names of its files; --as says what it is.")
        return layout
    if config.to in OF_STORES and layout != STORE:
        raise UserError(f"{first}: holds {layout}; --to {config.to} takes vectors from `shortlist encode`.")
    refuse_given(config, OF_DOCUMENTS, layout, "and documents alone take {}; leave it out, or add --as documents.")
    if layout != CLICKS:
        names = ("columns", *(name for name in OF_CLICKS if layout != FEEDBACK or name != "skip_missing"))
        refuse_given(config, names, layout, "and click logs alone take {}; leave it out, or add --as clicks.")
    elif config.as_ is None:
        say(f"convert: {first}: read as a click log, by the names of its columns; --as says what it is.")
    return layout
