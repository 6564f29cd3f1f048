"""Rerankers that read attention, blocks and vectors, beside the public code: the same random model, the same texts.

python benchmarks/parity_rerankers.py --icr CHECKOUT --qrhead CHECKOUT --core CHECKOUT --blockrank CHECKOUT \
    --e2rank CHECKOUT --out benchmarks/parity_rerankers.md

The public modules are loaded from the checkouts as they are. Those that need older transformers get stand-ins for their
copies of models: the same random model in this process, which keeps keys and queries where they look for them. Each
table has the largest difference, and the size of the numbers compared.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from measuring import commit_of, conditions, publish, quiet, table
from tokenizers.processors import TemplateProcessing
from transformers import AttentionInterface, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from shortlist.data.heads import best_heads
from shortlist.math.attention import filtered_sums, span_sums
from shortlist.math.blocks import block_mask, block_spans
from shortlist.math.head_scores import share_of_positive
from shortlist.math.losses import LOSSES
from shortlist.math.ranking import Ranking
from shortlist.models.attention import AttentionReader
from shortlist.models.blocks import Blocks, score_blocks
from shortlist.models.language import BlockLayout, LanguageModel, Wanted
from shortlist.models.reading import make_readable
from shortlist.records import Document, Query
from shortlist.rerankers.kinds import load_reranker
from shortlist.text.tokenizer import train_bpe

TEXTS = [
    "Otters live in rivers and on coasts.",
    "A goat climbs where nobody else can stand, and eats what grows there.",
    "Kettles boil.",
    "The harbour has a crane, and the crane has a driver who seldom looks down at the boats that come and go.",
    "Ferns grow in the shade of the wood.",
]
QUERY = "where do otters live"
CHAT = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "initializer_range": 0.15, "max_position_embeddings": 4096}
PUBLISHED = {
    "llama/core_temp0.1": "13-18,13-1,14-13,13-21,14-31,13-13,8-11,14-20",
    "mistral/core_temp0.001": "15-21,15-1,16-12,15-7,9-26,12-11,12-7,18-0",
}
"""The heads that CoRe's paper lists, by the file of all heads' scores."""


@dataclass(frozen=True, kw_only=True)
class Config:
    icr: Path | None = None
    """Checkout of OSU-NLP-Group/In-Context-Reranking."""
    qrhead: Path | None = None
    """Checkout of princeton-pli/QRHead."""
    core: Path | None = None
    """Checkout of linhhtran/CoRe-Reranking."""
    blockrank: Path | None = None
    """Checkout of nilesh2797/BlockRank."""
    e2rank: Path | None = None
    """Checkout of Alibaba-NLP/E2Rank."""
    out: Path | None = None
    """Markdown file to write too."""


class Row:
    """One comparison: its name, the largest difference, and the size of what was compared."""

    def __init__(self, name: str, ours: Any, theirs: Any, note: str = "") -> None:
        ours, theirs = (np.asarray(torch.as_tensor(each).detach().float()) for each in (ours, theirs))
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        self.cells = [name, f"{ours.size:,}", f"{np.abs(ours - theirs).max():.1e}", f"{np.abs(theirs).max():.3g}", note]


def section(title: str, rows: Sequence[Row], under: str = "") -> str:
    found = table(["compared", "numbers", "largest difference", "largest number", ""], [row.cells for row in rows])
    return "\n\n".join([f"## {title}", found, *([under] if under else [])])


# The public code


def load(folder: Path, package: str, module: str, **stand_ins: dict[str, Any]) -> Any:
    """Import a module of a checkout, with stand-ins for modules beside it."""
    parent = ModuleType(package)
    parent.__path__ = [str(folder)]
    sys.modules[package] = parent
    for name, contents in stand_ins.items():
        path = f"{package}.{name.replace('__', '.')}"
        made = ModuleType(path)
        made.__path__ = []
        made.__dict__.update(contents)
        sys.modules[path] = made
    return importlib.import_module(f"{package}.{module}")


class OldCache:
    """A cache as older transformers had it: lists that callers cut."""

    def __init__(self, query_indices: Sequence[int] = ()) -> None:
        self.key_cache: list[torch.Tensor] = []
        self.value_cache: list[torch.Tensor] = []
        self.query_cache: list[torch.Tensor] = []
        self._query_indices, self._seen_tokens = query_indices, 0


SEEN: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []


def recorded(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **how: Any) -> Any:
    """Attention of transformers, which keeps what it was given."""
    SEEN.append((query, key, value))
    return sdpa_attention_forward(module, query, key, value, *args, **how)


class Recorded:
    """The random model, called as the public code calls its own copies of models."""

    def __init__(self, folder: Path) -> None:
        AttentionInterface.register("recorded", recorded)
        self.model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="recorded").eval()
        self.config, self.device = self.model.config, torch.device("cpu")

    def __call__(self, input_ids: torch.Tensor, past_key_values: OldCache, **_: Any) -> Any:
        old, new = past_key_values, DynamicCache(config=self.config)
        for layer, (key, value) in enumerate(zip(old.key_cache, old.value_cache, strict=True)):
            new.update(key, value, layer)
        begun = old.key_cache[0].shape[2] if old.key_cache else 0
        SEEN.clear()
        size = input_ids.shape[1]
        mask = torch.ones(size, begun + size, dtype=torch.bool).tril(begun)[None, None]
        places = torch.arange(begun, begun + size)[None]
        with torch.no_grad():
            self.model.model(
                input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=new, use_cache=True
            )
        rows = torch.tensor(list(old._query_indices))
        old.query_cache = [query[:, :, rows] for query, _, _ in SEEN]
        old.key_cache, old.value_cache = [key for _, key, _ in SEEN], [value for _, _, value in SEEN]
        return SimpleNamespace(past_key_values=old)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Let code that moves tensors to a GPU leave them where they are."""
    move: Any = torch.Tensor.to

    def stay(tensor: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        here = ["cpu" if str(each).startswith("cuda") else each for each in args]
        return move(tensor, *here, **how)

    torch.Tensor.to = stay  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.to = move  # type: ignore[method-assign]


def write_model(folder: Path) -> Path:
    """A random decoder, and a tokenizer with hardly any merges, which puts <s> before a text as Llama 3's does."""
    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, vocab_size=280)
    tokenizer.add_special_tokens({"additional_special_tokens": CHAT})
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# In-context re-ranking, QRHead and CoRe


def documents() -> list[Document]:
    return [Document(str(place), text) for place, text in enumerate(TEXTS)]


def icr(checkout: Path, folder: Path) -> str:
    """Scores of documents by all heads."""
    models = {"MistralForCausalLM": None, "LlamaForCausalLM": None}
    module = load(
        checkout / "src",
        "icr",
        "in_context_reranker",
        custom={},
        custom__custom_cache={"DynamicCacheWithQuery": OldCache},
        custom__custom_modeling_mistral=models,
        custom__custom_modeling_llama=models,
    )
    theirs = object.__new__(module.InContextReranker)
    theirs.__dict__ |= {
        "_base_llm_name": "llama-3",
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "llm": Recorded(folder),
        "prompt_template": "instruct",
        "prompt_prefix": "<|start_header_id|>user<|end_header_id|>",
        "prompt_suffix": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        "scoring_strategy": "masked_NA_calibration",
        "retrieval_instruction": " Here are some paragraphs:",
        "retrieval_instruction_late": (
            "Please find information that are relevant to the following query in the paragraphs above."
        ),
        "_use_fa2": True,
        "start_layer": 0,
        "end_layer": SHAPE["num_hidden_layers"] - 1,
        "prompt_bos_length": 1,
        "additional_prompt_offset": 0,
        "prompt_separator": " \n\n",
    }
    with without_gpu(), redirect_stdout(StringIO()):
        _, found, _ = theirs.get_sorted_docs(QUERY, TEXTS[::-1], return_per_doc_results="tok", order="none")
    ours: Any = load_reranker("attention", model=str(folder), prompt="icr-llama-3", device="cpu")
    rendered = ours.read.renderer.render(Query("q", QUERY), documents()[::-1])
    text, spans, start, end = theirs._prepare_input_for_document_retrieval(QUERY, TEXTS[::-1])
    assert theirs.tokenizer(text).input_ids == rendered.ids  # the prompt, token by token
    assert [(span.start, span.stop) for span in rendered.spans] == spans
    assert (rendered.asking.start, rendered.asking.stop - 1) == (start, end)
    rows = [Row("documents' scores, calibrated and filtered", ours.score(QUERY, documents()), found.flip(0))]
    return section("In-context re-ranking", rows, "Prompt, documents' tokens and asking tokens are the same.")


def qrhead(checkout: Path, folder: Path) -> str:
    """Scores of documents by chosen heads, and by each head."""
    module = load(
        checkout / "src/qrretriever",
        "qrhead",
        "attn_retriever",
        config={"load_config": None},
        custom_cache={"DynamicCacheWithQuery": OldCache},
        custom_modeling_llama={
            "LlamaForCausalLM": None,
            "repeat_kv": lambda states, times: states.repeat_interleave(times, 1),
        },
        custom_modeling_qwen2={"Qwen2ForCausalLM": None},
    )
    theirs = object.__new__(module.AttnBasedRetriever)
    theirs.__dict__ |= {
        "model_base_class": "llama-3.1-8b-instruct",
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "llm": Recorded(folder),
        "start_layer": 0,
        "end_layer": SHAPE["num_hidden_layers"] - 1,
        "attn_head_set": "1-2,0-3,2-0",
        "device": "cpu",
        "null_query": "N/A",
    }
    shown = [{"idx": str(place), "paragraph_text": text} for place, text in enumerate(TEXTS)][::-1]
    chosen = theirs.score_docs(QUERY, shown)
    each = theirs.score_docs_per_head_for_detection(QUERY, shown)
    how: dict[str, Any] = {"model": str(folder), "prompt": "icr-llama-3", "device": "cpu"}
    ours: Any = load_reranker("attention", heads="1-2,0-3,2-0", **how)
    everything: Any = load_reranker("attention", **how)
    values, spans, _ = everything.read(Query("q", QUERY), documents())
    own = filtered_sums(values, spans)
    rows = [
        Row(
            "documents' scores by three heads", ours.score(QUERY, documents()), [chosen[d["idx"]] for d in shown[::-1]]
        ),
        Row(
            "documents' scores by each head",
            own,
            torch.stack([each[d["idx"]].flatten() for d in shown[::-1]], 1),
            f"{own.shape[0]} heads",
        ),
    ]
    return section("QRHead", rows)


def core(checkout: Path, folder: Path) -> str:
    """Scores of heads, and the heads that published scores choose."""
    module = load(
        checkout / "experiments/src",
        "core",
        "core_detector",
        custom={},
        custom__custom_cache={"DynamicCacheWithQuery": OldCache},
    )
    temperature, positive = 0.1, 2
    theirs = object.__new__(module.HeadDetector)
    theirs.__dict__ |= {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "llm": Recorded(folder),
        "offset": 0,
        "prompt_prefix": "<|start_header_id|>user<|end_header_id|>",
        "prompt_suffix": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        "retrieval_instruction": " Here are some paragraphs:\n\n",
        "retrieval_instruction_late": (
            "Please find information that are relevant to the following query in the paragraphs above.\n\nQuery: "
        ),
        "temp": temperature,
        "num_layer": SHAPE["num_hidden_layers"],
    }
    others = [place for place in range(len(TEXTS)) if place != positive]
    prompt, span, spans, asked = theirs.prepare_input(QUERY, TEXTS, positive, others)
    with without_gpu():
        found = theirs.score_documents(prompt, span, spans, asked)
    ids = theirs.tokenizer(prompt).input_ids
    backbone = LlamaForCausalLM.from_pretrained(folder).model.eval()
    read = AttentionReader(backbone, token_budget=2048, share=True, splits=False)
    asking = slice(asked[0], asked[1] + 1)
    [values] = read([ids], [asking])
    own = span_sums(values, [slice(*each) for each in (span, *spans)])
    relevant = torch.tensor([True, *[False] * len(spans)])
    rows = [
        Row(
            "scores of heads, on its tokens",
            share_of_positive(own, relevant, temperature=temperature),
            found.flatten(),
            f"{own.shape[0]} heads",
        )
    ]
    order = [positive, *others]
    labels = [len(theirs.tokenizer(f"[document {place + 1}]").input_ids) - 1 for place in order]
    ours = [slice(start - label, end) for label, (start, end) in zip(labels, (span, *spans), strict=True)]
    labelled = share_of_positive(span_sums(values, ours), relevant, temperature=temperature)
    rows.append(Row("scores of heads, labels among a document's tokens", labelled, found.flatten(), "as we have them"))
    note = (
        "With our prompt `core` a document's tokens begin at its label, `[document 1]`, as in reranking; CoRe's begin "
        "behind it. The second row is what that changes."
    )
    return "\n\n".join([section("CoRe", rows, note), chosen_heads(checkout / "head_data")])


def chosen_heads(folder: Path) -> str:
    """The eight best heads of published scores beside those that the paper lists."""
    rows = []
    for name, listed in PUBLISHED.items():
        for path in sorted(folder.glob(f"{name}_prune*.json")):
            scores = {head: float(np.mean(score)) for head, score in json.loads(path.read_text("utf-8")).items()}
            chosen = best_heads(scores, 8)
            wanted = listed.split(",")
            same = sum(str(head) == other for head, other in zip(chosen, wanted, strict=True))
            rows.append([str(path.relative_to(folder)), f"{same} of 8", ", ".join(map(str, chosen))])
    return "\n\n".join(
        [
            "### Heads chosen from the published scores",
            table(["file", "in the published place", "chosen"], rows),
            "Published for whole models (`prune0.0`): "
            + "; ".join(f"{name}: {heads.replace(',', ', ')}" for name, heads in PUBLISHED.items())
            + ". The others are of models without their last layers, whose heads cannot be the same where those lay.",
        ]
    )


# BlockRank


def padded(blocks: Blocks, size: int, start: int, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions of blocks that are padded on the left to the same size, as BlockRank has them."""
    parts = [blocks.first, *blocks.documents, blocks.last]
    ids, mask, places = (torch.zeros(len(parts), size, dtype=torch.long) for _ in range(3))
    ids += pad
    starts = [0, *[len(blocks.first)] * len(blocks.documents), start]
    for row, (part, begin) in enumerate(zip(parts, starts, strict=True)):
        ids[row, size - len(part) :] = torch.tensor(part)
        mask[row, size - len(part) :] = 1
        places[row, size - len(part) :] = begin + torch.arange(len(part))
    return ids, mask, places


def some_blocks() -> Blocks:
    draw = np.random.default_rng(1)
    sizes = [7, 3, 12, 9, 5]
    found = [draw.integers(3, 250, size).tolist() for size in sizes]
    first, last = draw.integers(3, 250, 10).tolist(), draw.integers(3, 250, 14).tolist()
    return Blocks(first, found, last, slice(12, 14))


def blockrank(checkout: Path, folder: Path) -> str:
    """The mask, scores of documents, and the loss of their contrast."""
    attention = load(checkout / "src/blockrank", "blockrank_code", "blockrank_std_attention")
    losses = load(checkout / "src/blockrank", "blockrank_code", "losses")
    blocks, size, start, layer = some_blocks(), 16, 40, 1
    ids, mask, places = padded(blocks, size, start)
    seen = attention.eager_blockrank_attention_mask(1, torch.arange(1), 1, attention_mask=mask[None])
    kept = mask.flatten().bool()

    def shares_of(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
        """Its attention itself: its output where values are unit vectors."""
        units = torch.eye(len(kept))[None, None].expand(1, key.shape[1], -1, -1)
        module = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], training=False)
        wide = torch.nn.functional.pad(query, (0, len(kept) - query.shape[-1]))
        keys = torch.nn.functional.pad(key, (0, len(kept) - key.shape[-1]))
        out, _ = attention.eager_blockrank_attention_forward(module, wide, keys, units, seen, scale)
        return out.transpose(1, 2)[0][:, kept][:, :, kept]

    torch.manual_seed(0)
    query, key = torch.randn(1, 4, len(kept), 16), torch.randn(1, 2, len(kept), 16)
    theirs = shares_of(query, key, 0.25)
    own_mask = block_mask(blocks.lengths)
    logits = (query[0] * 0.25) @ key[0].repeat_interleave(2, 0).transpose(1, 2)
    ours = logits[:, kept][:, :, kept].masked_fill(~own_mask, -torch.inf).softmax(-1)
    assert torch.equal(theirs > 0, own_mask.expand_as(theirs))

    last_logits: dict[int, torch.Tensor] = {}

    def forward(module: Any, query: Any, key: Any, value: Any, _: Any, scaling: float, **how: Any) -> Any:
        asked = {"return_last_block_attn_scores": True, "num_last_queries": 16}
        out, scores = attention.eager_blockrank_attention_forward(module, query, key, value, seen, scaling, **asked)
        last_logits[module.layer_idx] = scores
        return out, None

    AttentionInterface.register("as_blockrank", forward)
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="as_blockrank").eval()
    model.model(input_ids=ids.reshape(1, -1), position_ids=places.reshape(1, -1), use_cache=False)
    labels = torch.full((1, len(kept)), -100)
    labels[0, -1:] = 5  # the answer begins with the last token: the two that ask are it and the one before
    answers, temperature = torch.tensor([[2, 0]]), 0.05
    arguments = (last_logits[layer], labels, mask[None])
    scores = losses.compute_auxiliary_attention_loss(*arguments, temperature=1.0, return_logits=True)[0]
    loss, _ = losses.compute_auxiliary_attention_loss(*arguments, answer_ids=answers, temperature=temperature)

    backbone = LlamaForCausalLM.from_pretrained(folder).model.eval()
    read = AttentionReader(backbone, token_budget=2048, share=True, splits=False)
    found = score_blocks(read, blocks, layer=layer, start=start)
    trained = _trained_scores(folder, blocks, layer, start)
    relevance = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]])
    ranking = Ranking(found[None], relevance, None, torch.ones(1, 5, dtype=torch.bool))
    own_loss = LOSSES["infonce"](ranking, positives="all", temperature=temperature)  # type: ignore[call-arg]
    return section(
        "BlockRank",
        [
            Row("attention of random queries and keys under the mask", ours, theirs, "the same tokens are seen"),
            Row("documents' scores, as `rerank` computes them", found, scores),
            Row("documents' scores, as `train` computes them", trained, scores),
            Row("auxiliary loss, two positives, temperature 0.05", own_loss, loss),
        ],
        "Its kind `eager`, blocks of 3 to 14 tokens padded on the left to 16, layer 1 of 3.",
    )


def _trained_scores(folder: Path, blocks: Blocks, layer: int, start: int) -> torch.Tensor:
    """Documents' scores from the module that is trained."""
    reader = load_generator_backbone(folder)
    lengths = tuple(blocks.lengths)
    begun = block_spans(lengths)[-1].start
    asking = slice(begun + blocks.asking.start, begun + blocks.asking.stop)
    flat = [*blocks.first, *(i for ids in blocks.documents for i in ids), *blocks.last]
    wanted = Wanted(len(flat), len(flat), layout=BlockLayout(lengths, start, asking, layer))
    rows = reader(torch.tensor([flat]), torch.tensor([len(flat)]), [wanted])
    return rows.values[2:]


def load_generator_backbone(folder: Path) -> LanguageModel:
    """The language model as `train` has it."""
    backbone = LlamaForCausalLM.from_pretrained(folder).model.eval()
    make_readable(backbone)
    return LanguageModel(backbone, None, None)  # type: ignore[arg-type]


# E2Rank


def e2rank(checkout: Path) -> str:
    """RankNet, and both losses together."""
    sys.modules.setdefault("transformers.file_utils", sys.modules["transformers.utils"])
    module = load(checkout / "src", "e2rank_code", "modeling")
    draw = torch.Generator().manual_seed(0)
    queries, docs, dim = 3, 6, 16
    vectors = {
        "query": F.normalize(torch.randn(queries, dim, generator=draw), dim=-1),
        "document": F.normalize(torch.randn(queries * docs, dim, generator=draw), dim=-1),
        "pseudo_query": F.normalize(torch.randn(queries, dim, generator=draw), dim=-1),
    }
    order = torch.stack([torch.randperm(docs - 1, generator=draw) + 1 for _ in range(queries)])
    order = torch.cat(
        [torch.zeros(queries, 1, dtype=torch.long), order], 1
    )  # the positive is the best, as groups begin
    ranks = order.argsort(1)
    cosines = torch.einsum("qd,qnd->qn", vectors["pseudo_query"], vectors["document"].view(queries, docs, dim))
    relevance = (ranks == 0).float()
    ranking = Ranking(cosines, relevance, -ranks.float(), torch.ones(queries, docs, dtype=torch.bool))

    def ours(**how: Any) -> torch.Tensor:
        return LOSSES["ranknet"](ranking, temperature=0.1, order="teacher", **how)  # type: ignore[call-arg]

    theirs = module.rank_net(cosines * 10, docs - ranks)
    one = Ranking(*(part[:1] if part is not None else None for part in ranking[:4]))  # type: ignore[arg-type]
    weighted = LOSSES["ranknet"](one, temperature=0.1, order="teacher", weigh_by_ranks=True)  # type: ignore[call-arg]
    theirs_weighted = module.rank_net(cosines[:1] * 10, docs - ranks[:1], weighted=True)

    def encode(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=input_ids)

    encode.config = None  # type: ignore[attr-defined]
    joint = object.__new__(module.JointTrainingModel)
    torch.nn.Module.__init__(joint)
    joint.__dict__ |= {"model": encode, "use_embed_loss": True, "loss_embed_factor": 1.0, "use_ranknet_loss": True}
    joint.__dict__ |= {"ranking_loss_fn": module.rank_net, "loss_ranknet_factor": 2.0, "ranknet_scale_factor": 10.0}
    joint.emb_loss_fn = module.DistributedContrastiveLoss(0.03, False)
    as_inputs = {
        name: {"input_ids": each[:, None], "attention_mask": torch.ones(len(each), 1, dtype=torch.long)}
        for name, each in vectors.items()
    }
    whole = joint(**as_inputs, ranking=order)
    in_batch = vectors["query"] @ vectors["document"].T
    positives = torch.zeros(queries, queries * docs)
    positives[torch.arange(queries), torch.arange(queries) * docs] = 1
    everything = Ranking(in_batch, positives, None, torch.ones_like(positives, dtype=torch.bool))
    own = LOSSES["infonce"](everything, temperature=0.03) + 2 * ours()  # type: ignore[call-arg]
    return section(
        "E2Rank",
        [
            Row("RankNet of cosines / 0.1, three lists of six", ours(), theirs),
            Row("RankNet weighed by ranks, one list", weighted, theirs_weighted),
            Row("InfoNCE (0.03) and twice RankNet", own, whole.loss),
        ],
        "Its mean is over the pairs of all lists, ours over lists, which is the same for lists of one length. Its "
        "weights by ranks are right for one list alone (ranks are counted through all lists).",
    )


def main(config: Config) -> None:
    """Compare what there are checkouts of."""
    quiet()
    under = conditions(None, packages=("torch", "transformers"))
    checkouts = {
        name: path for name in ("icr", "qrhead", "core", "blockrank", "e2rank") if (path := getattr(config, name))
    }
    under += "\n- " + ", ".join(f"{name} {commit_of(path)}" for name, path in checkouts.items())
    under += (
        "\n- random LLaMA of 3 layers, 4 heads of 2 groups, 64 dimensions, float32; five texts of 13 to 105 letters"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_model(Path(temporary))
        compare: dict[str, Callable[[Path], str]] = {
            "icr": lambda path: icr(path, folder),
            "qrhead": lambda path: qrhead(path, folder),
            "core": lambda path: core(path, folder),
            "blockrank": lambda path: blockrank(path, folder),
            "e2rank": e2rank,
        }
        publish(
            "Parity of rerankers with public code",
            under,
            [compare[name](path) for name, path in checkouts.items()],
            config.out,
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
