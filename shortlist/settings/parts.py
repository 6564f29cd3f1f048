"""The sources of a training, opened: each one's collection, and its groups with their queries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from shortlist.data.collections import Collection, FolderCollection, open_collection
from shortlist.data.groups import GroupSource, groups_from_qrels, groups_from_run, open_groups, without_query
from shortlist.data.lines import ignore
from shortlist.data.manifest import identity
from shortlist.data.memory import MemoryCollection
from shortlist.data.preferences import PreferenceFile, read_preferences
from shortlist.data.runs import open_run
from shortlist.data.stored import StoredGroups
from shortlist.errors import UserError
from shortlist.models.kinds import named_kind
from shortlist.records import Group, Query
from shortlist.settings.reward import check_rewarded_prompt, shows_one
from shortlist.settings.sources import OVERRIDES, SourceSettings, parse_sources
from shortlist.settings.train import Config, check_prompt, views_alone
from shortlist.text.prompts import named_prompt


class SourcePart(NamedTuple):
    """A source of a training, as it was asked for.

    Without --sources there is one, without a name.
    """

    name: str
    config: Config
    """The settings of the training, with those of this source in their places."""
    settings: SourceSettings

    @property
    def where(self) -> str:
        """The name of the source in errors."""
        if self.settings.run:
            where = str(self.settings.run)
        else:
            where = str(self.config.groups or f"{self.config.collection} {self.config.split}")
        return f"source {self.name!r} ({where})" if self.name else where


class OpenPart(NamedTuple):
    """A source of a training with its collection and its groups."""

    name: str
    config: Config
    settings: SourceSettings
    collection: Collection
    source: GroupSource
    preferences: PreferenceFile | None = None
    """What a language model learns to write, in place of what it could learn about groups."""


def source_parts(config: Config) -> list[SourcePart]:
    """Return the sources of a training, with the settings of each.

    Raises:
        UserError: the file of --sources cannot be read, or says something that does not fit.
    """
    if not config.sources:
        return [SourcePart("", config, SourceSettings(collection=str(config.collection)))]
    parts = []
    for name, settings in parse_sources(config.sources).items():
        given = {field: getattr(settings, field) for field in OVERRIDES}
        given = {field: value for field, value in given.items() if value not in (None, ())}
        place = {"collection": settings.collection, "groups": settings.groups, "sources": None, "mix_temperature": 1.0}
        if settings.prompt and not config.prompt:
            raise UserError(f"source {name!r}: has a prompt, and the others have none; add --prompt.")
        own = replace(config, **place, **given)
        check_prompt(own)
        if own.reward and own.prompt:
            check_rewarded_prompt(own, named_prompt(own.prompt))
        parts.append(SourcePart(name, own, settings))
    return parts


SUMMARY = "summary"
"""The prompt of preferences whose file names none, as of `compress: summary`."""


def preferred_part(config: Config) -> OpenPart:
    """Read the preferences of a training, each as a group of its document alone.

    Raises:
        UserError: a file cannot be read, or was written with another prompt.
    """
    assert config.preferences is not None  # for the type checker
    found = read_preferences(config.preferences)
    name = config.prompt or found.asked.prompt or SUMMARY
    for file in (found, read_preferences(config.heldout_preferences) if config.heldout_preferences else found):
        prompt, words = file.asked
        if prompt is not None and named_prompt(prompt).digest() != named_prompt(name).digest():
            raise UserError(f"{file.path}: was written with the prompt {prompt}; add --prompt {prompt}.")
        if words != found.asked.words:
            raise UserError(f"{file.path}: was asked for other numbers of words than {found.path}; write it anew.")
    ids = [str(number) for number in range(len(found.preferences))]
    queries = {own: one.query._replace(query_id=own) for own, one in zip(ids, found.preferences, strict=True)}
    documents = [one.document._replace(doc_id=own) for own, one in zip(ids, found.preferences, strict=True)]
    source = GroupSource([Group(own, (own,), ()) for own in ids], queries, identity(config.preferences))
    config = replace(config, prompt=name)
    return OpenPart("", config, SourceSettings(collection=""), MemoryCollection(documents), source, found)


def open_collections(parts: Sequence[SourcePart]) -> list[Collection]:
    """Open the collection of each source; sources of the same collection share it."""
    opened = {name: open_collection(name) for name in dict.fromkeys(part.settings.collection for part in parts)}
    return [opened[part.settings.collection] for part in parts]


def open_parts(config: Config) -> list[OpenPart]:
    """Open the sources of a training, with their queries."""
    if config.preferences:
        return [preferred_part(config)]
    parts = source_parts(config)
    return [open_part(*pair) for pair in zip(parts, open_collections(parts), strict=True)]


def settled(config: Config, parts: Sequence[OpenPart]) -> Config:
    """Return the settings of the training, as they are once its groups have been opened."""
    return config if config.sources else parts[0].config


def ranks_groups(config: Config) -> bool:
    """Whether each group is ranked by itself, so that it needs negatives."""
    if config.prompt:
        return named_prompt(config.prompt).asks != "queries"
    return named_kind(config.kind).role == "reranker"


def open_part(part: SourcePart, collection: Collection) -> OpenPart:
    """Open the groups of a source with their queries, or make them.

    They are made of judgements or of a run. Groups that are made of judgements will get negatives, as the settings then
    say, if each is ranked by itself, as a reranker does.
    """
    config, run = part.config, part.settings.run
    if config.prompt and config.negatives is None and not shows_one(config):
        config = replace(config, negatives=named_prompt(config.prompt).shown_at_once() - 1)
    if views_alone(config):
        return OpenPart(part.name, config, part.settings, collection, documents_source(collection))
    if config.groups:
        source = open_groups(str(config.groups), least=config.positives_from)
    elif run:
        source = GroupSource(groups_from_run(open_run(run), part.settings.depth), {}, identity(run))
    else:
        qrels, least = collection.qrels(config.split), config.positives_from or 1
        source = GroupSource(groups_from_qrels(qrels, least), {}, collection.identity(f"qrels/{config.split}"))
        if ranks_groups(config) and config.negatives_from is None:
            config = replace(config, negatives_from="bm25")
    if len(without_query(source.groups, source.queries)):
        source = _with_queries(source, config, collection, unjudged=run is not None)
    return OpenPart(part.name, config, part.settings, collection, source)


def _with_queries(source: GroupSource, config: Config, collection: Collection, *, unjudged: bool) -> GroupSource:
    """Add the texts of the queries, and judgements beside the groups, from the collection.

    Beside groups that are on disk they stay there too.

    Args:
        unjudged: whether the queries need not be judged.
    """
    on_bad, stored = ignore if config.skip_missing else None, isinstance(source.groups, StoredGroups)
    if (unjudged or stored) and isinstance(collection, FolderCollection):
        queries = collection.stored_queries(config.split, on_bad)
    else:
        queries = {query.query_id: query for query in collection.queries(config.split, on_bad)}
    both = {**queries, **source.queries} if source.queries else queries
    return source._replace(queries=both, judged=_judged(config, collection, source.groups))


def documents_source(collection: Collection) -> GroupSource:
    """Make a group of each document, as its own positive; views will replace the texts.

    The query's text is the id, so that no two queries seem to be the same.
    """
    doc_ids = [document.doc_id for document in collection.corpus() if document.text.strip()]
    groups = [Group(doc_id, (doc_id,), ()) for doc_id in doc_ids]
    return GroupSource(groups, {doc_id: Query(doc_id, doc_id) for doc_id in doc_ids}, collection.identity("corpus"))


def _judged(config: Config, collection: Collection, groups: Sequence[Group]) -> Mapping[str, frozenset[str]]:
    """Find the judged documents of the groups' queries that are relevant, but in no group.

    Where they stay on disk, those in a group are among them.
    """
    if not config.groups:
        return {}
    try:
        if isinstance(groups, StoredGroups) and isinstance(collection, FolderCollection):
            return collection.stored_relevant(config.split, config.positives_from or 1)
        qrels = collection.qrels(config.split)
    except UserError:  # a split without judgements has queries all the same
        return {}
    named, least = dict[str, set[str]](), config.positives_from or 1
    for group in groups:
        named.setdefault(group.query_id, set()).update(group.positives)
    relevant = {
        query_id: frozenset(doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade >= least) - doc_ids
        for query_id, doc_ids in named.items()
    }
    return {query_id: doc_ids for query_id, doc_ids in relevant.items() if doc_ids}
