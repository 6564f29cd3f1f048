"""Collections that other libraries fetch: ir_datasets and Hugging Face datasets (the extra `hub`)."""

import csv
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, final

from shortlist.data.beir import is_whole
from shortlist.data.checks import ALL, check_split, judged_queries, no_qrels, pick, split_of
from shortlist.data.formats import to_document, to_query
from shortlist.data.hub_layouts import divide_name, hub_layout, records_of, rows_of
from shortlist.data.lines import OnBad, ignore, parse_records
from shortlist.data.seen import checked
from shortlist.errors import UserError, unknown
from shortlist.records import Document, Qrels, Query

TIMEOUT_SECONDS = 10
"""Time that the hub may take to answer."""
PLAIN_FILES = ("abdoelsayed/FutureQueryEval",)
"""Data sets on the hub that consist of files of different kinds, without a configuration for each."""
RECORDS_AT_ONCE = 1000
"""Number of records held at the same time while ids are looked up."""


@final
class IrdsCollection:
    """A collection from ir_datasets, by an id such as `beir/scifact`.

    Its splits are the ids below it: `test` is `beir/scifact/test`. An id that has queries of its own holds them as the
    split `all`, and under its last component: `irds:beir/scifact/test` has the splits `all` and `test`. A data set of
    BEIR with only one split holds it as `test` too.
    """

    def __init__(self, dataset_id: str):
        self.name = f"irds:{dataset_id}"
        self._module, self._id = _hub("ir_datasets"), dataset_id
        with self._readable():
            if not self._load(dataset_id).has_docs():
                raise UserError(f"{self.name}: has no documents; name the id that holds the corpus.")

    def _readable(self) -> AbstractContextManager[None]:
        return _readable(
            self.name,
            f"check the id; if its files are to be fetched, run `ir_datasets export {self._id} docs` where there is "
            "network, the same with queries and qrels for the id of the split, and copy ~/.ir_datasets from there to "
            f"{self._module.util.home_path()}",
        )

    def _load(self, dataset_id: str) -> Any:
        try:
            return self._module.load(dataset_id)
        except KeyError:
            raise unknown("ir_datasets id", dataset_id, self._module.registry) from None

    def corpus(self, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
        parse = checked(irds_document, allow_empty=allow_empty)
        return _documents(self.name, parse_records(self.name, self._docs(), parse, on_bad))

    def _docs(self) -> Iterator[Any]:
        with self._readable():
            yield from self._load(self._id).docs_iter()

    def num_docs(self) -> int:
        with self._readable():
            known = self._load(self._id).docs_count()  # None where only reading the records would tell
        return known if known is not None else sum(1 for _ in self._docs())

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        wanted = list(dict.fromkeys(doc_ids))
        with self._readable():
            records = self._load(self._id).docs_store().get_many(wanted)
        documents = parse_records(self.name, records.values(), irds_document)
        return pick(self.name, "document", wanted, {document.doc_id: document for document in documents})

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        asked, lacking = list(doc_ids), []
        with self._readable():
            store = self._load(self._id).docs_store()
            for start in range(0, len(asked), RECORDS_AT_ONCE):
                batch = asked[start : start + RECORDS_AT_ONCE]
                found = store.get_many(batch)
                lacking += [doc_id for doc_id in batch if doc_id not in found]
        return lacking

    def splits(self) -> list[str]:
        return sorted(self._split_ids)

    @cached_property
    def _split_ids(self) -> dict[str, str]:
        below = [name for name in self._module.registry if name.startswith(f"{self._id}/") and not is_whole(name)]
        own_splits = {ALL: self._id, self._id.rpartition("/")[2]: self._id}
        if is_whole(self._id) and self._load(self._id).has_qrels():
            own_splits["test"] = self._id
        ids = own_splits | {name.removeprefix(f"{self._id}/"): name for name in below}
        return {split: name for split, name in ids.items() if self._load(name).has_queries()}

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        check_split(self.name, split, self.splits())
        dataset = self._load(self._split_ids[split])
        judged = dataset.has_qrels()
        with self._readable():
            on_record = ignore if judged and on_bad else on_bad
            queries = list(parse_records(self.name, dataset.queries_iter(), irds_query, on_record))
        return judged_queries(self.name, queries, self.qrels(split), on_bad) if judged else queries

    def qrels(self, split: str) -> Qrels:
        check_split(self.name, split, self.splits())
        dataset = self._load(self._split_ids[split])
        if not dataset.has_qrels():
            raise no_qrels(self.name, split)
        with self._readable():
            return dataset.qrels_dict()

    def identity(self, *parts: str) -> str:
        # ir_datasets checks what it downloads against a pinned hash, so the id alone says what the contents are.
        return hashlib.sha256("\n".join([self.name, *parts]).encode()).hexdigest()


def irds_document(record: Any) -> Document:
    """Convert a document of ir_datasets.

    Title and text are taken from their fields if the record has them; otherwise all its text becomes the text.
    """
    text = getattr(record, "text", None) or getattr(record, "body", None)
    fields = {"title": getattr(record, "title", ""), "url": getattr(record, "url", "")} if text is not None else {}
    return to_document({"_id": record.doc_id, "text": record.default_text() if text is None else text, **fields})


def irds_query(record: Any) -> Query:
    """Convert a query of ir_datasets, with all its text."""
    return to_query({"_id": record.query_id, "text": record.default_text()})


@final
class HubTables:
    """The tables of a data set of the hub, or of a local copy."""

    def __init__(self, dataset_id: str, name: str):
        self.name = name
        self._module, self._id = _hub("datasets"), dataset_id
        with _reached(self._module, dataset_id):
            self.configs: Sequence[str] = self._module.get_dataset_config_names(dataset_id)

    def has_files(self, files: Sequence[str]) -> bool:
        folder = Path(self._id)
        return all((folder / name).is_file() for name in files) if folder.is_dir() else self._id in PLAIN_FILES

    def load_file(self, file: str) -> Any:
        columns = {"sep": "\t", "quoting": csv.QUOTE_NONE} if file.endswith(".tsv") else {}
        return _load_tables(self._module, self._id, None, data_files={"rows": file}, **columns)["rows"]

    def load(self, config: str | None) -> Mapping[str, Any]:
        return _load_tables(self._module, self._id, config)

    def load_beside(self, suffix: str) -> Mapping[str, Any]:
        return _load_tables(self._module, f"{self._id}{suffix}", None)


@final
class HubCollection:
    """A data set of the Hugging Face hub, or a local folder that `datasets.load_dataset` reads.

    Its layout is BEIR's, Tevatron's corpus, LitSearch's or BRIGHT's (see hub_layouts.py); of BRIGHT a task is named, as
    in `hf:xlangai/BRIGHT/biology` or `hf:xlangai/BRIGHT/biology/long`.
    """

    def __init__(self, dataset_id: str):
        self.name = f"hf:{dataset_id}"
        asked = divide_name(dataset_id)
        self._layout = hub_layout(HubTables(asked.dataset_id, self.name), asked)

    @cached_property
    def _corpus(self) -> Any:
        return self._layout.corpus()

    def corpus(self, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
        parse = checked(self._layout.document, allow_empty=allow_empty)
        yield from _documents(self.name, parse_records(self.name, rows_of(self._corpus), parse, on_bad))

    def num_docs(self) -> int:
        return len(self._corpus)

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        wanted = list(dict.fromkeys(doc_ids))
        numbers = pick(self.name, "document", wanted, self._numbers)
        columns = self._corpus[list(numbers.values())]
        return dict(zip(wanted, map(self._layout.document, records_of(columns)), strict=True))

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        return [doc_id for doc_id in doc_ids if doc_id not in self._numbers]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {document.doc_id: number for number, document in enumerate(self.corpus())}

    def splits(self) -> list[str]:
        return self._layout.splits()

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        judgements = self.qrels(split)  # first, so that a collection without queries says that it has no such split
        queries = self._layout.queries(split, None if on_bad is None else ignore)
        return judged_queries(self.name, queries, judgements, on_bad)

    def qrels(self, split: str) -> Qrels:
        check_split(self.name, split, self.splits())
        return self._layout.qrels(split)

    def excluded(self, split: str) -> dict[str, list[str]]:
        """Return the documents that each query must not find; queries without any are left out."""
        check_split(self.name, split, self.splits())
        return self._layout.excluded(split)

    def identity(self, *parts: str) -> str:
        digest = hashlib.sha256()
        for part in parts:
            for record in self._records(part):
                digest.update(repr(record).encode())
        return digest.hexdigest()

    def _records(self, part: str) -> Iterable[Any]:
        # Hash the records themselves: a data set's own fingerprint changes with the cache it was read from.
        if part == "corpus":
            return self.corpus(on_bad=lambda _: None)
        if part == "queries":
            return dict.fromkeys(query for split in self.splits() for query in self._layout.queries(split))
        return self.qrels(split_of(part)).items()


def hub_rows(dataset_id: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set's split `train`, or of its only split.

    They are read as by `HubCollection`.

    Raises:
        UserError: the data set cannot be fetched or read, it has several splits and none is `train`, or the extra `hub`
            is not installed.
    """
    tables = _load_tables(_hub("datasets"), dataset_id, None)
    split = "train" if len(tables) > 1 else next(iter(tables))
    if split not in tables:
        raise unknown(f"split of hf:{dataset_id}", split, tables)
    return rows_of(tables[split])


def _load_tables(module: ModuleType, dataset_id: str, config: str | None, **how: Any) -> dict[str, Any]:
    # datasets 5.2 keeps serving its cached copy of a local folder after the files have changed: build it anew.
    fresh = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
    options: dict[str, Any] = how | (fresh if Path(dataset_id).is_dir() else {})
    with _reached(module, dataset_id):
        try:
            return module.load_dataset(dataset_id, config, **options)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # A data set published as a program is never run; for most of them the hub keeps the resulting tables.
            return module.load_dataset(dataset_id, config, revision="refs/convert/parquet")


def _hub(module: str) -> ModuleType:
    """Import a module of the extra `hub`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"{module} is not installed: `irds:` and `hf:` need it; pip install 'shortlist[hub]'."
        ) from None


@contextmanager
def _reached(module: ModuleType, dataset_id: str) -> Iterator[None]:
    """Let `datasets` read a data set, from its cache alone if the hub is silent.

    Without this, `datasets` would keep asking a hub that does not answer for 24 s.
    """
    local, offline = Path(dataset_id).exists(), module.config.HF_HUB_OFFLINE
    fault = None if local or offline else _fault(dataset_id)
    steps = (
        f"check the id; if it is to be fetched, run `hf download --repo-type dataset {dataset_id} --local-dir FOLDER` "
        f"where there is network ({dataset_id}-qrels too, if there is one, into FOLDER-qrels), copy and name hf:FOLDER"
    )
    module.config.HF_HUB_OFFLINE = offline or fault is not None
    try:
        known = (module.exceptions.DatasetsError,)
        with _readable(f"hf:{dataset_id}", "check its files" if local else steps, *known, reason=fault):
            yield
    finally:
        module.config.HF_HUB_OFFLINE = offline


@cache
def _fault(dataset_id: str) -> str | None:
    """Return the reason why the hub does not answer, or None if it does.

    Its answer may be that there is no such data set.
    """
    hub = _hub("huggingface_hub")
    try:
        hub.HfApi().dataset_info(dataset_id, timeout=TIMEOUT_SECONDS)
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError):
        return None
    except Exception as error:  # from its HTTP library, which differs between versions
        return f"the hub does not answer: {_reason(error)}"
    return None


@contextmanager
def _readable(name: str, steps: str, *errors: type[Exception], reason: str | None = None) -> Iterator[None]:
    """Turn a library's error about a data set into a UserError of one line.

    The line says why it cannot be fetched or read, and what can be done instead.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, *errors) as error:
        if error.args and isinstance(error.args[0], Path):
            reason, steps = f"{error.args[0]} is missing", "put it there, got as ir_datasets' documentation of it says"
        raise UserError(
            f"{name}: cannot be read ({reason or _reason(error)}); {steps}; or bring its corpus, queries and "
            "judgements into a folder in BEIR's layout and name that."
        ) from None


def _reason(error: BaseException) -> str:
    """Return the cause of an error in one line, without the exceptions around it."""
    first, *rest = error.args or (None,)
    if columns := _other_columns(error):
        return columns
    if rest and isinstance(rest[0], list):  # ir_datasets has tried several sources
        return _reason(rest[0][-1][1])
    reason = str(getattr(first, "reason", None) or error.__cause__ or error).strip()
    return (reason or type(error).__name__).splitlines()[0]


def _other_columns(error: BaseException | None) -> str | None:
    """Describe fields that come up too late for `datasets`.

    It takes a file's fields from its first 10 MB.
    """
    parts = str(error).split("\n\n")
    while error is not None:
        there, known = (getattr(error, f"{kind}_column_names", None) for kind in ("table", "requested"))
        if there is not None and known is not None:
            kinds = (("new", set(there) - set(known)), ("missing", set(known) - set(there)))
            found = " and ".join(f"{kind} {', '.join(sorted(names))}" for kind, names in kinds if names)
            files = next(
                (after for part, after in pairwise(parts) if part.startswith("This happened while")), "the data"
            )
            return f"later records of {files} have other fields than the first ones: {found}; give all records the same"
        error = error.__cause__ or error.__context__
    return None


def _documents(name: str, documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents; raise a UserError if there are none."""
    document = None
    for document in documents:
        yield document
    if document is None:
        raise UserError(f"{name}: holds no documents.")
