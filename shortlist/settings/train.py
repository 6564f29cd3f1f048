"""Settings of a training run, and the checks that need neither files nor PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from shortlist.config import NotInJob, SpeedOnly, flag_of, read_options, refuse_idle
from shortlist.errors import UserError, check_installed, unknown
from shortlist.models.adapter_settings import ADAPTERS, parse_adapter
from shortlist.models.kinds import named_kind
from shortlist.settings.sparsity import parse_regulariser
from shortlist.text.contract import PER_TOKEN, named_contract
from shortlist.text.contract import SPARSE as SPARSE_POOLINGS
from shortlist.text.prompts import Asks, Prompt, named_prompt

RETRIEVERS = ("dims", "dims_weights", "mix_negatives", "views", "views_weight")
"""Settings of retrievers alone."""
LATE = ("dim", "scoring")
"""Settings of late interaction alone."""
OF_SPARSE = ("query_terms", "document_terms", "logs", "keep_terms", "document_sparsity", "query_sparsity")
"""Settings of sparse models alone."""
QUERY_TERMS = {"model": "", "tokens": "tokens", "binary": "lookup", "idf": "lookup"}
"""What --query-terms may name, besides a file, and what it is in a contract."""
SCORING_OPTIONS: dict[str, dict[str, int]] = {"maxsim": {}, "xtr": {"k": 256}}
"""What --scoring may name, with its options and their defaults."""
LANGUAGE_MODELS = ("attention_stop", "corruption", "layer", "offset", "preferences", "heldout_preferences")
"""Settings of language models alone."""

RANKERS = (
    *("loss", "temperature", "negatives", "query_length", "bidirectional", "pooling", "guide"),
    *("heldout_split", "heldout_collection"),
)
"""Settings that say nothing about a language model."""
WITH_PROMPT = ("loss", "temperature", "negatives")
"""Those of them that do where it is asked with a prompt."""
HELDOUT = ("heldout_split", "heldout_collection")
"""Those of them that do where its answers are rewarded."""
OF_GROUPS = (
    *("collection", "groups", "sources", "negatives_from", "split", "positives_from", "skip_missing", "refresh_steps"),
    *("reward", "attention_stop", "corruption", "layer", "offset"),
)
"""Settings that say nothing about preferences."""
TRAINABLE: dict[Asks, str] = {
    "order": "all documents in order",
    "top": "the best few",
    "best": "the best one",
    "worst": "the worst one",
    "pair": "the better of two",
    "queries": "the group's query",
    "blocks": "the relevant ones",
}
"""What prompts may ask for whose right answers follow from groups."""

CHECKPOINTS = "checkpoints"
"""The folder of a training's checkpoints, in its --out."""
LOG = "log.jsonl"
DRAWING = "loss.svg"
EVENTS = "tensorboard"
"""The folder of TensorBoard's files."""


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[str]
    """What to train: retriever, reranker, late, sparse or language-model. late is a retriever with a vector for each
    token, sparse one with weights of terms (SPLADE); a language model, trained on the texts of judged pairs, is a
    backbone for the others."""
    backbone: str
    """Model to start from: folder or hub name. A retriever may become a reranker; a reranker keeps its head."""
    collection: str | None = None
    """Collection with the texts: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Folder for the model; the same job is continued where it left off, another job is refused."""
    groups: str | Path | None = None
    """Groups from `shortlist mine`, Tevatron's training JSONL, or an `hf:` name. Without it, the judged pairs of
    --split are used: a retriever learns from in-batch negatives, a reranker from those of --negatives-from."""
    negatives_from: Literal["random", "bm25"] | None = None
    """Give negatives to groups that have none: bm25 draws them from its 200 best hits for the query, random from the
    whole corpus (None: bm25 for a reranker without --groups, otherwise such groups stay as they are)."""
    refresh_steps: int | None = None
    """Search for new negatives with the model itself every so many steps (None: never)."""
    refresh_depth: int = 200
    """Best documents of each query to draw these negatives from."""
    refresh_docs: int | None = None
    """Most documents to search for them, sampled anew each time (None: the whole collection)."""
    split: str = "train"
    """Split of the collection that has the groups' queries."""
    positives_from: int | None = None
    """Lowest grade of a positive; documents of lower grades are negatives (None: as the groups say, or 1)."""
    sources: str | None = None
    """YAML file of several sources, NAME: and its settings, in place of --collection and --groups. Each step takes its
    queries from one of them."""
    mix_temperature: float = 1.0
    """How evenly --sources are drawn: in proportion to (groups x weight)^(1/T). 1: by size; large: all alike."""
    skip_missing: NotInJob[bool] = False
    """Leave out queries and documents of the groups, or of the judgements, that the collection lacks, and count them,
    instead of stopping."""
    contract: str | None = None
    """Input contract by name (None: the backbone's, or the paper's for its architecture if it has none)."""
    query_length: int | None = None
    """Most tokens of a query (None: the contract's limit)."""
    max_length: int | None = None
    """Most tokens of a document or, for a reranker, of a pair (None: the contract's limit)."""
    adapter: str | None = None
    """Train an adapter instead of all weights: a kind and its options, such as dora,r=16,alpha=32. Kinds: lora, dora,
    rslora, adalora, ia3, prompt, prefix, connected; paper and paper+k are the paper's LoRA."""
    four_bit: bool = False
    """Keep the weights below the adapter in 4 bits (QLoRA)."""
    bidirectional: bool = False
    """Let every token of a decoder see the whole input, not only the tokens before it."""
    pooling: str | None = None
    """How the states of an input become one: last, cls, mean, weighted (mean, later tokens counting more) or, for a
    retriever, latent (attention to learned vectors, then the mean) (None: as the contract says)."""
    dims: tuple[int, ...] = ()
    """Dimensions that a retriever's vectors may later be cut to (Matryoshka): the losses of all are added up. Name the
    model's own dimension too, such as 384 128 64."""
    dims_weights: tuple[float, ...] = ()
    """Weight of each of --dims (default: 1 each)."""
    dim: int | None = None
    """Late interaction: dimension of the tokens' vectors (None: 128, or that of the late model to start from)."""
    scoring: str = "maxsim"
    """Late interaction: how training scores a document: maxsim, or xtr, where only the k document tokens of the step
    that are nearest to a query's token count (xtr,k=256)."""
    query_terms: str | None = None
    """Sparse: what weighs a query's terms: model (as for documents), tokens (a linear layer, for its own tokens),
    binary or idf (a list, so that search needs no model; idf counts the collection's documents), or a JSON file of
    weights by term (None: as the contract says)."""
    document_terms: Literal["vocabulary", "tokens"] | None = None
    """Sparse: what weighs a document's terms: the language-model head, for all terms of the vocabulary, or a linear
    layer, for its own tokens (None: as the contract says)."""
    logs: int | None = None
    """Sparse: how often log(1 + x) is applied to a logit above 0 (None: as the contract says, or once)."""
    keep_terms: int | None = None
    """Sparse: keep a document's terms of the greatest weights, this many (None: as the contract says, or all)."""
    document_sparsity: str = "flops"
    """Sparse: what keeps documents' weights sparse: flops, l1, idf-flops (where rare terms cost less) or none, with
    options: weight=0.001; steps over which it grows (0: a third of all); exempt, the terms that a text may have at no
    cost; terms, how many it is to have, to which the weight is steered (flops,weight=0.003,terms=150)."""
    query_sparsity: str = "flops"
    """Sparse: what keeps queries' weights sparse, likewise; nothing where they are looked up."""
    mix_negatives: int = 0
    """Synthetic negatives per query: mixtures of the vectors of two negatives of its group, others in each step."""
    views: Literal["crop", "drop", "mask"] | None = None
    """Train a retriever on documents alone: one view of a document is the query, another its positive. Views are random
    spans (crop), texts without half of their words (drop), or with `_` in the place of half of them (mask)."""
    views_weight: float | None = None
    """Train on --groups or judged pairs as usual, and in each step on views of as many documents of the corpus too,
    whose loss has this weight (None: on views alone)."""
    feedback: Path | None = None
    """Train a feedback encoder for retrievers (ANCE-PRF): a query is read with its first documents in this run, all
    within --query-length tokens (None: 512). The vectors of documents stay those of --backbone."""
    feedback_docs: int | None = None
    """Feedback documents of a query, at most (None: 3, or 5 with --lol)."""
    feedback_depth: int | None = None
    """First documents of the run to draw these from, in any order (None: as many as are read, or 20 with --lol)."""
    lol: float = 0.0
    """Read each query with several numbers of feedback documents, drawn from 0 to --feedback-docs, and add what it
    loses more with more of them, with this weight (LoL: 1)."""
    lol_compare: int = 1
    """Further versions of a query that --lol compares with the first."""
    attention_stop: bool = False
    """Language model: put an end token between query and document, and let tokens after it see nothing before it, so
    that it learns to hold a whole text; only tokens after it are predicted."""
    corruption: float = 0.0
    """Language model: replace words of what comes first in a text by `_`, each with this probability; only what comes
    after it is predicted."""
    prompt: str | None = None
    """Language model: ask about each group's documents with this prompt, such as first or rank-zephyr, and learn the
    right answer (--loss lm, the default) or to rank the documents by their labels' logits (all other losses). Right is
    the order of the teacher's scores, else of the grades, else positives first. A prompt shows --negatives + 1.
    Retriever: also read the query with its group's documents by this prompt, such as e2rank, and rank them by their
    vectors beside the prompt's (--prompt-loss)."""
    prompt_loss: tuple[str, ...] = ("ranknet=2", "ranknet.temperature=0.1")
    """Retriever, with --prompt: losses of the documents' order by the prompt's vector, as for --loss and added to it;
    ranknet.order=teacher follows a teacher (E2Rank)."""
    reward: str | None = None
    """Learn from rewards of what the model samples in each step, and not from --loss: a name and options, such as
    ndcg,samples=8. ndcg, mrr and recall reward a reranker's rankings (Neural PG-RANK) or, with --prompt, answers; label
    (Rank-R1), list (ERank), group (GroupRank), exclusion (IRanker) and binary (ProRank) the answers of a language
    model, to a prompt of their own if --prompt names none. A --loss beside rankings, such as anchor=0.1, is added."""
    policy: str | None = None
    """What rewards or preferences are learned by: a name and options, such as grpo,kl=0.01,updates=2. Names: pg, grpo,
    dr-grpo, dapo, dpo, orpo (None: pg for rankings, grpo for answers; orpo, the only one, for --preferences)."""
    preferences: Path | None = None
    """Language model: learn which of two texts to write about a document, from this file of `shortlist preferences` and
    by --policy orpo. It has the texts, so there is no --collection. --prompt is the one that they were written to."""
    layer: int | None = None
    """Language model, with --prompt blockrank: layer whose attention ranks the documents, from 0, for losses of
    rankings (None: five eighths of all, 20 of 32)."""
    offset: Literal["paper", "code", "near"] = "code"
    """Language model, with --prompt blockrank: position of what follows the documents: 8192, 16384, or right behind the
    longest one."""
    negatives: int | None = None
    """Negatives per query and step, another slice each epoch (None: all of the group)."""
    batch_size: int = 128
    """Queries per step."""
    epochs: int = 1
    """Number of passes over the groups, those of all sources together."""
    steps: int | None = None
    """Stop after this many steps, whatever --epochs says."""
    learning_rate: float = 1e-4
    """Highest learning rate, reached after the warm-up; then it decays linearly to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate grows."""
    optimizer: str = "adamw"
    """What turns gradients into steps: a name and its options, such as galore,rank=64. Names: adamw, adamw-8bit,
    paged-adamw-8bit, adafactor, galore, gradnorm."""
    layers_sampled: str | None = None
    """Train only this many layers at a time, drawn by their share of outlying weights, such as 2,every=20."""
    loss: tuple[str, ...] = ("infonce",)
    """Loss to minimise: NAME, or several NAME=WEIGHT that are added up, and NAME.PARAMETER=VALUE. infonce picks the
    positive; kl follows the teacher's scores in --groups (`mine --teacher`), where good and bad documents should differ
    by about kl.teacher_temperature (1); the guide lists all others."""
    temperature: float | None = None
    """Divides the scores in every loss that has a temperature (None: by 0.01 for a retriever, 1 for a reranker)."""
    guide: str | None = None
    """Retriever (folder or hub name) that scores the documents of each step: negatives that it finds as relevant to the
    query as the positive do not count."""
    guide_margin: str = "0"
    """How far below the positive a negative must be for the guide, to count: an absolute similarity such as 0.05, or a
    share of the positive's such as 5%."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products; trained weights and the loss are fp32 in both."""
    attention: SpeedOnly[str | None] = None
    """Attention implementation, as transformers names it: sdpa, flash_attention_2, ... (None: its default)."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass, padding included (None: 1,024 on a CPU, 65,536 on a GPU); halved if memory runs out."""
    grad_cache: SpeedOnly[bool] = False
    """Run the model twice per step and hold one micro-batch in memory at a time: any --batch-size fits."""
    gradient_checkpointing: SpeedOnly[bool] = False
    """Hold one layer's activations in memory at a time, and run each layer twice: any length fits."""
    processes: SpeedOnly[int | None] = None
    """Processes of this machine that train together and share its cores, or its GPUs (None: on a CPU one for each core,
    at most 4, or this one for tiny and for large models; with GPUs this one)."""
    sharded: SpeedOnly[bool] = False
    """With several processes, split weights, gradients and optimizer among them (FSDP), for models too large for one
    device. Otherwise every process holds the whole model."""
    checkpoint_steps: NotInJob[int] = 100
    """Steps between checkpoints."""
    keep: NotInJob[int] = 1
    """Checkpoints to keep, besides the best; with 1, all are removed once the model is saved."""
    heldout_split: str | None = None
    """Split to measure MRR@10 on while training; the best model is then saved instead of the last."""
    heldout_collection: str | None = None
    """Collection of that split (None: --collection, or the first of --sources)."""
    heldout_preferences: Path | None = None
    """File of preferences whose loss is measured while training on --preferences; the best model is then saved."""
    heldout_steps: int = 100
    """Steps between held-out measurements; the last step is always measured."""
    heldout_queries: int = 100
    """Most queries of the held-out split."""
    heldout_docs: int = 2000
    """Documents to search for held-out queries, their relevant ones included; a reranker orders BM25's best 20 of them
    for each query."""
    tensorboard: NotInJob[bool] = False
    """Also write TensorBoard's files."""
    seed: int = 0
    """Seed for the order of groups, the choice of negatives, dropout and a new head."""
    dry_run: NotInJob[bool] = False
    """Print the steps, tokens and memory that training would take, without loading weights or writing anything."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def check(config: Config) -> None:
    """Refuse invalid settings.

    Raises:
        UserError: a setting is out of range, names something unknown, or contradicts another.
    """
    _check_ranges(config)
    _check_preferences(config)
    _check_dims(config.dims, config.dims_weights)
    _check_above_zero(config)
    _check_kind(config)
    check_prompt(config)
    _check_views(config)
    _check_mixed(config)
    _check_where_groups_are(config)
    _check_refresh(config)
    _check_guide(config)
    _check_what_trains(config)
    if config.contract:
        named_contract(config.contract)
    _check_four_bit(config)
    if config.tensorboard:
        check_installed("--tensorboard", {"tensorboard": "'shortlist[tensorboard]'"})
    if config.four_bit:
        check_installed("--four-bit", {"bitsandbytes": "'shortlist[qlora]'"})


def _check_ranges(config: Config) -> None:
    at_least = dict.fromkeys(("batch_size", "epochs", "steps", "checkpoint_steps", "token_budget", "keep"), 1)
    at_least |= dict.fromkeys(("processes",), 1)
    at_least |= dict.fromkeys(("heldout_steps", "heldout_queries", "heldout_docs", "query_length", "max_length"), 1)
    at_least |= dict.fromkeys(("negatives", "mix_negatives", "warmup_steps", "seed", "layer"), 0) | {
        "positives_from": 1
    }
    at_least |= dict.fromkeys(("refresh_steps", "refresh_depth", "refresh_docs"), 1)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{flag_of(name)} is {value}; expected at least {least}.")


def _check_above_zero(config: Config) -> None:
    for name in ("temperature", "learning_rate", "mix_temperature"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{flag_of(name)} is {value}; expected more than 0.")


def _check_kind(config: Config) -> None:
    """Refuse settings of another kind of model.

    Raises:
        UserError: a setting that the kind does not have, or a corruption that is no probability.
    """
    if named_kind(config.kind).role == "language-model":
        asks = config.prompt and not config.preferences
        known = (*(WITH_PROMPT if asks else ()), *(HELDOUT if config.reward else ()))
        for name in RANKERS:
            if getattr(config, name) != getattr(Config, name) and name not in known:
                raise UserError(f"{flag_of(name)}: says nothing about a language model; leave it out.")
    if named_kind(config.kind).role != "retriever":
        for name in RETRIEVERS:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a retriever, and says nothing about a {config.kind}.")
    if config.kind != "late":
        for name in LATE:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for late interaction, and says nothing about a {config.kind}.")
    if config.kind == "late":
        _check_late(config)
    if config.kind != "sparse":
        for name in OF_SPARSE:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a sparse model, and says nothing about a {config.kind}.")
    if config.kind == "sparse":
        _check_sparse(config)
    if config.kind != "retriever":
        for name in ("prompt_loss",) if named_kind(config.kind).role == "language-model" else ("prompt", "prompt_loss"):
            if getattr(config, name) != getattr(Config, name):
                expected = "a retriever" if name == "prompt_loss" else "a language model or a retriever"
                raise UserError(f"{flag_of(name)}: is for {expected}, and says nothing about a {config.kind}.")
    if named_kind(config.kind).role != "language-model":
        for name in LANGUAGE_MODELS:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a language model, and says nothing about a {config.kind}.")
    if not 0 <= config.corruption < 1:
        raise UserError(f"--corruption is {config.corruption}; expected at least 0 and below 1.")


def _check_late(config: Config) -> None:
    """Refuse settings that do not go with a vector for each token.

    Raises:
        UserError: a pooling, mixtures of vectors, an unknown scoring, or a dimension below another.
    """
    if config.pooling not in (None, PER_TOKEN):
        raise UserError(f"--pooling {config.pooling}: late interaction keeps every token's vector; leave it out.")
    if config.mix_negatives:
        raise UserError("--mix-negatives: mixes single vectors, and late interaction has one for each token.")
    least = max((1, *config.dims))
    if config.dim is not None and config.dim < least:
        raise UserError(f"--dim is {config.dim}; expected at least {least}.")
    parse_scoring(config.scoring)


def _check_sparse(config: Config) -> None:
    """Refuse settings that do not go with weights of terms.

    Raises:
        UserError: a pooling of states, dimensions, a number out of range, or an unknown regulariser.
    """
    if config.pooling not in (None, *SPARSE_POOLINGS):
        raise UserError(f"--pooling {config.pooling}: expected {' or '.join(SPARSE_POOLINGS)} for a sparse model.")
    if config.dims:
        raise UserError("--dims: cuts vectors, and a sparse model has weights of terms; use --keep-terms.")
    for name in ("logs", "keep_terms"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{flag_of(name)} is {value}; expected at least 1.")
    for name in ("document_sparsity", "query_sparsity"):
        parse_regulariser(getattr(config, name), flag_of(name))
    if config.query_terms not in (None, *QUERY_TERMS) and not Path(str(config.query_terms)).is_file():
        raise UserError(f"--query-terms {config.query_terms}: expected {', '.join(QUERY_TERMS)} or a JSON file.")


def parse_scoring(text: str) -> tuple[str, dict[str, int]]:
    """Parse `--scoring`: its name, and its options with their values.

    Raises:
        UserError: an unknown name or option, or a value below 1.
    """
    name, _, rest = text.partition(",")
    if name not in SCORING_OPTIONS:
        raise UserError(f"--scoring {text}: {unknown('scoring', name, SCORING_OPTIONS)}")
    options = read_options(f"--scoring {text}", name, rest, SCORING_OPTIONS[name])
    if low := [option for option, value in options.items() if value < 1]:
        raise UserError(f"--scoring {text}: {low[0]} is {options[low[0]]}; expected at least 1.")
    return name, options


def check_prompt(config: Config) -> None:
    """Refuse a prompt that groups cannot answer, and settings that do not go with one.

    Raises:
        UserError: there is no such prompt, or it does not fit.
    """
    if config.preferences:
        if config.prompt and (prompt := named_prompt(config.prompt)).asks != "text":
            raise UserError(
                f"--prompt {prompt.name}: preferences are between texts; take summary, or another for them."
            )
        return
    if config.prompt is None:
        if config.prompt_loss != Config.prompt_loss:
            raise UserError("--prompt-loss: there is no prompt whose vector ranks documents; add --prompt.")
        for name in ("layer", "offset"):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a prompt in blocks, such as blockrank; leave it out.")
        return
    prompt, count = named_prompt(config.prompt), None if config.negatives is None else config.negatives + 1
    if config.kind == "retriever":
        _check_prompt_of_retriever(config, prompt)
        return
    if config.reward is None and prompt.asks not in TRAINABLE:
        expected = "; ".join(TRAINABLE.values())
        raise UserError(f"--prompt {prompt.name}: what it asks for does not follow from groups; expected: {expected}.")
    if prompt.encoder:
        raise UserError(f"--prompt {prompt.name}: is for encoder-decoders, which are not trained here; take another.")
    for name in ("attention_stop", "corruption"):
        if getattr(config, name) != getattr(Config, name):
            raise UserError(f"{flag_of(name)}: says nothing about prompts; leave out one of the two.")
    for name in ("layer", "offset"):
        if getattr(config, name) != getattr(Config, name) and prompt.asks != "blocks":
            raise UserError(f"{flag_of(name)}: is for a prompt in blocks, such as blockrank; leave it out.")
    if config.reward:
        return  # `settings.reward` looks at the rest
    if count is not None and count > (most := prompt.most_documents() or count):
        raise UserError(f"--negatives {config.negatives}: the prompt {prompt.name} shows at most {most} documents.")
    shown = prompt.shown_at_once()
    if (
        prompt.asks not in ("queries", "blocks")
        and prompt.parsed(
            prompt.begins + prompt.right_answer(range(shown)), shown, prompt.most_to_choose(shown)
        ).malformed
    ):
        raise UserError(
            f"--prompt {prompt.name}: its answers hold more than labels, such as thoughts, which groups do not have; "
            "take another, such as first or rank-zephyr."
        )


def _check_prompt_of_retriever(config: Config, prompt: Prompt) -> None:
    """Refuse a prompt that gives a retriever no vector, or nothing to rank.

    Raises:
        UserError: it does not fit.
    """
    if prompt.asks != "states" or prompt.marks:
        raise UserError(
            f"--prompt {prompt.name}: a retriever learns from a prompt whose last state is a vector; take e2rank or "
            "another of its forms."
        )
    if config.negatives == 0:
        raise UserError("--negatives 0: a prompt's vector ranks a positive and its negatives; expected at least 1.")
    if views_alone(config):
        raise UserError("--prompt: ranks the documents of groups, which --views alone does not have; leave out one.")
    if config.pooling not in (None, "last"):
        raise UserError(f"--pooling {config.pooling}: a prompt's vector is its last token's state; leave out one.")


def _check_mixed(config: Config) -> None:
    if config.negatives is not None and config.negatives < 2 and config.mix_negatives:
        raise UserError(f"--mix-negatives mixes two of --negatives, which is {config.negatives}; expected at least 2.")


def _check_guide(config: Config) -> None:
    parse_margin(config.guide_margin)
    if config.guide_margin != Config.guide_margin and not config.guide:
        raise UserError("--guide-margin: says how near to the positive the guide's finds are; add --guide MODEL.")


def _check_what_trains(config: Config) -> None:
    """Refuse an adapter, or a sampling of layers, that does not go with the rest.

    Raises:
        UserError: there is no such adapter, or it needs what another setting takes away.
    """
    if config.adapter:
        adapter = parse_adapter(config.adapter)
        if config.gradient_checkpointing and adapter.kind in ("prefix", "connected"):
            raise UserError(
                f"--gradient-checkpointing: runs layers again, which --adapter {adapter.kind} cannot; use --grad-cache."
            )
        if config.sharded and adapter.kind == "adalora":
            raise UserError("--sharded: --adapter adalora compares whole matrices; leave out one of the two.")
    if config.layers_sampled:
        for name in ("adapter", "sharded"):
            if getattr(config, name):
                raise UserError(f"--layers-sampled: trains whole layers, one after another; leave out {flag_of(name)}.")


def _check_four_bit(config: Config) -> None:
    if config.four_bit and not config.adapter:
        raise UserError("--four-bit: weights in 4 bits cannot learn; add --adapter paper.")
    if config.four_bit and config.sharded:
        raise UserError("--four-bit: 4-bit weights cannot be sharded; leave out one of the two.")


def parse_margin(text: str) -> tuple[float, bool]:
    """Parse `--guide-margin`: the margin, and whether it is a share of the positive's similarity.

    Raises:
        UserError: it is neither a number nor a percentage.
    """
    number, relative = text.removesuffix("%"), text.endswith("%")
    try:
        margin = float(number)
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise UserError(f"--guide-margin is {text!r}; expected a similarity such as 0.05, or a share such as 5%.")
    return (margin / 100 if relative else margin), relative


def _check_views(config: Config) -> None:
    """Refuse settings that do not go together with views.

    Raises:
        UserError: a weight without views or not above 0, or groups beside views alone.
    """
    if config.views_weight is not None and config.views is None:
        raise UserError("--views-weight: there are no views; add --views.")
    if config.views_weight is not None and not 0 < config.views_weight < math.inf:
        raise UserError(f"--views-weight is {config.views_weight}; expected more than 0.")
    if config.views is not None and config.sources:
        raise UserError("--views: reads the documents of one collection; leave out --sources.")
    if views_alone(config):
        for name in (
            "groups",
            "negatives_from",
            "negatives",
            "mix_negatives",
            "skip_missing",
            "split",
            "positives_from",
        ):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(
                    f"{flag_of(name)}: --views alone reads documents only; add --views-weight, or leave it out."
                )


def views_alone(config: Config) -> bool:
    """Whether a training reads documents only."""
    return config.views is not None and config.views_weight is None


def _check_dims(dims: Sequence[int], weights: Sequence[float]) -> None:
    """Refuse dimensions of vectors, and their weights, that do not go together.

    Raises:
        UserError: a dimension below 1 or twice, another number of weights, or a weight that is not above 0.
    """
    if bad := [dim for place, dim in enumerate(dims) if dim < 1 or dim in dims[:place]]:
        raise UserError(f"--dims has {bad[0]}; expected different dimensions, each at least 1.")
    if weights and len(weights) != len(dims):
        raise UserError(f"--dims-weights has {len(weights)} numbers for {len(dims)} --dims; expected as many.")
    if bad := [weight for weight in weights if not 0 < weight < math.inf]:
        raise UserError(f"--dims-weights has {bad[0]}; expected more than 0.")


def _check_preferences(config: Config) -> None:
    """Refuse what does not go together with preferences.

    Raises:
        UserError: there is no such file, or a setting says nothing about preferences.
    """
    if config.preferences is None:
        if config.heldout_preferences is not None:
            raise UserError("--heldout-preferences: is measured while training on --preferences; add them.")
        return
    if named_kind(config.kind).role != "language-model":
        raise UserError(f"--preferences: are learned by a language model, and not by a {config.kind}.")
    for name in OF_GROUPS:
        if getattr(config, name) != getattr(Config, name):
            raise UserError(f"{flag_of(name)}: says nothing about --preferences; leave out one of the two.")
    for name in ("preferences", "heldout_preferences"):
        path = getattr(config, name)
        if path is not None and not path.is_file():
            raise UserError(f"{flag_of(name)} {path}: no such file; `shortlist preferences` writes one.")
    if config.adapter and not ADAPTERS[kind := parse_adapter(config.adapter).kind].merges:
        raise UserError(f"--adapter {kind}: a model that writes is loaded with its adapter merged; take lora.")


def _check_where_groups_are(config: Config) -> None:
    if config.preferences:
        return
    if config.sources:
        for name in ("collection", "groups"):
            if getattr(config, name) is not None:
                raise UserError(f"{flag_of(name)}: each of --sources names its own; leave out one of the two.")
    elif config.collection is None:
        raise UserError("--collection: names no collection; expected one, or several in a file of --sources.")
    elif config.mix_temperature != Config.mix_temperature:
        raise UserError("--mix-temperature: says how --sources are drawn; add them, or leave it out.")
    if config.heldout_collection is not None and config.heldout_split is None:
        raise UserError("--heldout-collection: no split of it is measured; add --heldout-split.")
    if config.heldout_split is None:
        names = ("heldout_steps", "heldout_queries", "heldout_docs")
        refuse_idle(config, names, "is for --heldout-split, and there is none")


def _check_refresh(config: Config) -> None:
    if config.refresh_steps is None:
        for name in ("refresh_depth", "refresh_docs"):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: says where new negatives are from; add --refresh-steps.")
    elif named_kind(config.kind).role != "retriever":
        raise UserError(f"--refresh-steps: a {config.kind} has no vectors to search with; leave it out.")
    elif config.negatives == 0:
        raise UserError("--refresh-steps: finds negatives, and --negatives is 0; leave out one of the two.")
