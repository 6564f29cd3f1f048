"""The same random LLaMA weights and the same token ids in other tools: Tevatron, sentence-transformers, transformers.

Every side takes texts with their prompts in place, a pair's text being `query: Q document: D`, puts EOS at the end,
and cuts at `max_length` tokens. Those that encode or score give a float32 array and tokenise within the measured time;
those that train tokenise beforehand.

Tevatron is not on PyPI: check out github.com/texttron/tevatron and pass the folder. Its own model and collator run in
its own loops (inference in batches of 64 as they come, right padding), with the settings kindest to it here: float32,
SDPA attention, padding to the longest text only. Its data set classes, which read files, are left out.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import processors
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, LlamaModel

from shortlist.text.tokenizer import from_sentencepiece

Size = Literal["S", "M"]
SIZES: dict[Size, dict[str, Any]] = {
    "S": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688},
    "M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
}
TEVATRON_BATCH, TEVATRON_CHUNK = 64, 16
QUERY_LENGTH, MAX_LENGTH = 32, 196
BOS, EOS = 1, 2
Texts = Sequence[str] | Sequence[list[int]]


def save_llama(folder: Path, size: Size, tokenizer_file: Path, *, reranker: bool, seed: int = 0) -> None:
    """Write a randomly initialised LLaMA with the LLaMA-2 tokenizer into a folder that every side can load."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES[size], vocab_size=32_000, pad_token_id=0, bos_token_id=BOS, eos_token_id=EOS)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config) if reranker else LlamaModel(config)
    model.save_pretrained(folder)
    tokenizer = from_sentencepiece(tokenizer_file)
    _use_templates(tokenizer, single="<s> $A")
    tokenizer.save_pretrained(folder)


def token_ids(folder: Path, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """BOS, text, EOS: what every side should feed its model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(list(texts), truncation=True, max_length=max_length - 1)["input_ids"]
    return [[*row, EOS] for row in rows]


@torch.inference_mode()
def expected_vectors(folder: Path, ids: Sequence[list[int]]) -> np.ndarray:
    """The definition: transformers' LlamaModel on one text at a time; the unit vector of the state at EOS."""
    model = LlamaModel.from_pretrained(folder).eval()
    states = [model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
    return F.normalize(torch.stack(states), dim=-1).numpy()


@torch.inference_mode()
def expected_scores(folder: Path, ids: Sequence[list[int]]) -> np.ndarray:
    """The definition: transformers' LlamaForSequenceClassification on one pair at a time."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    return np.array([model(input_ids=torch.tensor([row])).logits.item() for row in ids], dtype=np.float32)


def tevatron_encoder(
    checkout: Path, folder: Path, max_length: int, dtype: torch.dtype = torch.float32
) -> Callable[[Texts], np.ndarray]:
    """Tevatron's DenseModel and EncodeCollator; given ids instead of texts, the padding of the collator alone."""
    _importable(checkout)
    from tevatron.retriever.arguments import DataArguments  # pyright: ignore[reportMissingImports]
    from tevatron.retriever.collator import EncodeCollator  # pyright: ignore[reportMissingImports]
    from tevatron.retriever.modeling import DenseModel  # pyright: ignore[reportMissingImports]

    settings = {"torch_dtype": dtype, "attn_implementation": "sdpa"}
    model = DenseModel.load(str(folder), pooling="eos", normalize=True, **settings).eval()
    arguments = DataArguments(passage_max_len=max_length, append_eos_token=True, pad_to_multiple_of=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    collator = EncodeCollator(arguments, tokenizer)

    def collate(rows: list[tuple[int, Any, None]]) -> tuple[Any, Any]:
        return (
            collator(rows) if isinstance(rows[0][1], str) else (None, _padded(tokenizer, [ids for _, ids, _ in rows]))
        )

    @torch.no_grad()
    def encode(texts: Texts) -> np.ndarray:
        rows = [(i, text, None) for i, text in enumerate(texts)]
        batches = DataLoader(rows, batch_size=TEVATRON_BATCH, collate_fn=collate)  # pyright: ignore[reportArgumentType]
        return np.concatenate([model(passage=dict(batch)).p_reps.float().numpy() for _, batch in batches])

    return encode


def tevatron_reranker(checkout: Path, folder: Path, max_length: int) -> Callable[[list[str]], np.ndarray]:
    """Tevatron's RerankerModel and RerankerInferenceCollator."""
    _importable(checkout)
    from tevatron.reranker.arguments import DataArguments  # pyright: ignore[reportMissingImports]
    from tevatron.reranker.collator import RerankerInferenceCollator  # pyright: ignore[reportMissingImports]
    from tevatron.reranker.modeling import RerankerModel  # pyright: ignore[reportMissingImports]

    model = RerankerModel.load(str(folder), torch_dtype=torch.float32, attn_implementation="sdpa").eval()
    arguments = DataArguments(rerank_max_len=max_length, append_eos_token=True, pad_to_multiple_of=None)
    collator = RerankerInferenceCollator(arguments, AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def score(texts: list[str]) -> np.ndarray:
        rows = [("", i, text) for i, text in enumerate(texts)]
        batches = DataLoader(rows, batch_size=TEVATRON_BATCH, collate_fn=collator)  # pyright: ignore[reportArgumentType]
        return np.concatenate([model(dict(batch)).scores.numpy()[:, 0] for *_, batch in batches])

    return score


def tevatron_training(
    checkout: Path,
    folder: Path,
    batches: Sequence[Sequence[tuple[str, list[str]]]],
    *,
    lora: bool = False,
    checkpointing: bool = False,
    grad_cache: Path | None = None,
    temperature: float,
) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """Tevatron's DenseModel, TrainCollator and gradient cache, put together as its train.py and its Trainer do.

    Args:
        batches: each a list of (query, passages); as many passages for every query, the positive first.
        lora: the paper's adapters instead of all weights.
        grad_cache: checkout of GradCache, which Tevatron's trainer then runs on chunks of 16 texts.

    Returns:
        The model, and the function that adds the gradients of one batch and returns its loss.
    """
    _importable(checkout)
    from tevatron.retriever.arguments import (  # pyright: ignore[reportMissingImports]
        DataArguments,
        ModelArguments,
        TevatronTrainingArguments,
    )
    from tevatron.retriever.collator import TrainCollator  # pyright: ignore[reportMissingImports]
    from tevatron.retriever.modeling import DenseModel  # pyright: ignore[reportMissingImports]

    settings = {"model_name_or_path": str(folder), "pooling": "eos", "normalize": True, "temperature": temperature}
    adapters = {"lora_r": 32, "lora_target_modules": "q_proj,v_proj,o_proj,down_proj,up_proj,gate_proj"}
    training = TevatronTrainingArguments(str(folder / "unused"), use_cpu=True)
    training.gradient_checkpointing = checkpointing
    options = {"torch_dtype": torch.float32, "attn_implementation": "sdpa"}
    model = DenseModel.build(ModelArguments(**settings, lora=lora, **adapters), training, **options)
    model.train().config.use_cache = training.use_cache
    if checkpointing:
        model.gradient_checkpointing_enable()
    lengths = {"query_max_len": QUERY_LENGTH, "passage_max_len": MAX_LENGTH, "pad_to_multiple_of": None}
    collate = TrainCollator(DataArguments(**lengths, append_eos_token=True), AutoTokenizer.from_pretrained(folder))
    padded = [collate([((query,), [(text,) for text in texts]) for query, texts in batch]) for batch in batches]
    cached = _tevatron_cached(model, grad_cache, temperature) if grad_cache else None

    def backward(i: int) -> Tensor:
        query, passage = map(dict, padded[i])
        if cached:
            return cached({"query": query}, {"passage": passage})
        loss = model(query=query, passage=passage).loss
        loss.backward()
        return loss.detach()

    return model, backward


def _tevatron_cached(model: nn.Module, grad_cache: Path, temperature: float) -> Callable[..., Tensor]:
    """GradCache as Tevatron's GradCacheTrainer sets it up, but for the temperature, which its loss leaves out."""
    _importable(grad_cache)
    from grad_cache import GradCache  # pyright: ignore[reportMissingImports]
    from tevatron.retriever.gc_trainer import (  # pyright: ignore[reportMissingImports]
        SimpleContrastiveLoss,
        get_dense_rep,
        split_dense_inputs,
    )

    return GradCache(
        models=[model, model],
        chunk_sizes=TEVATRON_CHUNK,
        loss_fn=lambda queries, passages: SimpleContrastiveLoss()(queries / temperature, passages),
        split_input_fn=split_dense_inputs,
        get_rep_fn=get_dense_rep,
    )


def sentence_transformers_encoder(folder: Path, max_length: int) -> Callable[[Texts], np.ndarray]:
    """SentenceTransformer.encode with its default batches of 32, which it sorts by length.

    It takes no ids; given them, its modules run on batches put together in the same way.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=max_length)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    _use_templates(transformer.tokenizer, single="<s> $A </s>")

    @torch.inference_mode()
    def encode(texts: Texts) -> np.ndarray:
        if isinstance(texts[0], str):
            return model.encode(texts, batch_size=32, show_progress_bar=False)  # pyright: ignore
        order = np.argsort([-len(ids) for ids in texts], kind="stable")
        batches = [order[i : i + 32] for i in range(0, len(order), 32)]
        features = (_padded(transformer.tokenizer, [texts[i] for i in batch]) for batch in batches)
        vectors = np.concatenate([model(dict(batch))["sentence_embedding"].numpy() for batch in features])
        return vectors[np.argsort(order)]

    return encode


def sentence_transformers_reranker(folder: Path, max_length: int) -> Callable[[list[tuple[str, str]]], np.ndarray]:
    """CrossEncoder.predict with its default batches of 32, which it sorts by length; raw scores."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), max_length=max_length, activation_fn=torch.nn.Identity(), device="cpu")
    _use_templates(model.tokenizer, single="<s> $A </s>", pair="<s> $A $B </s>")
    return lambda pairs: model.predict(pairs, batch_size=32, show_progress_bar=False)  # pyright: ignore


def _padded(tokenizer: Any, ids: Sequence[Any]) -> Any:
    return tokenizer.pad({"input_ids": list(ids)}, padding=True, padding_side="right", return_tensors="pt")


def _use_templates(tokenizer: Any, **templates: str) -> None:
    special = [("<s>", BOS), ("</s>", EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(**templates, special_tokens=special)


def _importable(checkout: Path) -> None:
    source = str(checkout / "src")
    if source not in sys.path:
        sys.path.insert(0, source)
