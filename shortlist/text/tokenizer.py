"""Loading a tokenizer exactly as its files define it.

The class for LLaMA in transformers rebuilds the tokenizer and differs from the files: with a bare `tokenizer.model` it
orders merges by id (double spaces come out wrong), and it drops a leading space. So `tokenizer.json` is loaded
unchanged, and a SentencePiece BPE model is converted here and compared with the original at once.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shortlist.errors import UserError

PROBE = "query:  a b   c\n\tdouble  spaces, (1999) naïve café – 東京 🦙 "

_PROBES = (
    "The retriever's list: 1,234 documents, e.g. https://example.org/a_b?c=d&e=f#g -- <b>it's</b> 50% re-ranked!",
    "Größe, İstanbul, IŞIK, ﬁnal, e\u0301 é, Ελλάδα, кириллица, עברית, العربية",
    "हिन्दी, ไทย, 中文分词、日本語テキスト。한국어",
    "def parseISODate(x):\n\treturn {x: [1.5e-3, None]}  # \u00a0\u200b\u2028 \U0001f600\U0001f468\u200d\U0001f469",
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
"""Tokenizer files; a folder with a tokenizer has at least one of them."""

TOKENIZER_PREFIXES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "special_tokens", "added_tokens")
"""Beginnings of the names of a tokenizer's files."""


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in the folder."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def tokenizer_identity(folder: Path) -> str:
    """Hash the files of the tokenizer, whatever weights are beside them."""
    digest = sha256()
    for path in sorted(path for path in folder.iterdir() if path.name.startswith(TOKENIZER_PREFIXES)):
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def fast_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder as an object of the package tokenizers.

    It reads whole texts without cutting them. transformers, which takes seconds to load, is needed only where there is
    no tokenizer.json.

    Raises:
        UserError: the folder has no usable tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else load_tokenizer(folder).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder.

    Its padding token differs from its end token, if it has another special token. Otherwise code that looks for the
    last token before the padding, such as transformers' classifiers, would miss the end token.

    Raises:
        UserError: the folder has no usable tokenizer.
    """
    tokenizer = _load(folder)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        others = [tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
        if other := next((token for token in others if token and token != tokenizer.eos_token), None):
            tokenizer.pad_token = other
    return tokenizer


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        if (folder / "tokenizer.model").exists():
            return from_sentencepiece(folder / "tokenizer.model")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{folder}: no usable tokenizer ({reason}); expected tokenizer.json or tokenizer.model."
        ) from None


def token_dependencies(tokenizer: Any) -> dict[str, str]:
    """Describe what a tokenizer's ids depend on besides its files.

    Vectors keep this, since a query that is split into other tokens finds less among them.

    Returns:
        Versions of libraries by name, and a digest of the ids of some texts.
    """
    return _versions() | {"ids": _digest(tokenizer)}


def other_tokens(then: Mapping[str, str] | None, load: Callable[[], Any]) -> str | None:
    """Say that a tokenizer gives other ids than before, and which libraries have changed.

    The result is None where they are the same, or where nothing says what they were. The tokenizer, whose files must be
    the same, is loaded only if a library has changed.
    """
    now = _versions()
    if not then or now.items() <= then.items() or then["ids"] == _digest(load()):
        return None
    changed = "; ".join(f"{name} {then.get(name)} then, {new} now" for name, new in now.items())
    return f"the tokenizer splits texts otherwise than when they were made ({changed})"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("tokenizers", "transformers")}


def _digest(tokenizer: Any) -> str:
    ids = tokenizer([PROBE, *_PROBES], add_special_tokens=False)["input_ids"]
    return sha256(json.dumps([list(each) for each in ids]).encode()).hexdigest()


def from_sentencepiece(path: Path) -> Any:
    """Convert a SentencePiece BPE model to a fast tokenizer with the same ids.

    LLaMA 1 and 2 and Mistral have such models.

    Raises:
        UserError: the file is not such a model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    try:
        proto = ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: not a SentencePiece model.") from None
    if not proto.pieces:
        raise UserError(f"{path}: a SentencePiece model without pieces.")
    pieces = [piece.piece for piece in proto.pieces]
    spec = proto.trainer_spec
    unk = pieces[spec.unk_id]
    core = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=_merges(proto),
        unk_token=unk,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )
    fast = Tokenizer(core)
    fast.normalizer = _normalizer(proto.normalizer_spec)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    named = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id}
    special = {name: pieces[i] for name, i in named.items() if i >= 0}
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, **special, pad_token=unk, padding_side="right", name_or_path=str(path.parent)
    )
    original = SentencePieceProcessor(model_file=str(path))
    if tokenizer(PROBE, add_special_tokens=False)["input_ids"] != original.encode(PROBE):
        raise UserError(f"{path}: not a BPE model that can be converted; save the tokenizer as tokenizer.json first.")
    return tokenizer


def _normalizer(spec: Any) -> Any:
    """Make a normalizer that changes text as SentencePiece does before tokenising."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _merges(proto: Any) -> list[tuple[str, str]]:
    """List all merges of two pieces into one, in SentencePiece's order of preference.

    The order is by score, then by id.
    """
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    ranked = []
    for i, entry in enumerate(proto.pieces):
        for cut in range(1, len(entry.piece)):
            left, right = entry.piece[:cut], entry.piece[cut:]
            if left in ids and right in ids:
                ranked.append((-entry.score, i, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def train_bpe(texts: Iterable[str], *, vocab_size: int, words_only: bool = False) -> Any:
    """Train a BPE tokenizer with `<pad>`, `<s>` and `</s>` on texts.

    Args:
        vocab_size: number of pieces, special ones included.
        words_only: keep only lower-cased words, numbers and the parts of identifiers (`parseISODate` is
            "parse iso date"), without white space and punctuation. This is for small models that search and never
            write. Otherwise the tokenizer is byte-level and loses nothing.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE(unk_token="<pad>" if words_only else None))
    alphabet: list[str] = []
    if words_only:
        humps = normalizers.Replace(Regex("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"), " ")
        fast.normalizer = normalizers.Sequence([normalizers.NFKC(), humps, normalizers.Lowercase()])
        fast.pre_tokenizer = pre_tokenizers.Split(Regex("[^\\W_]+"), behavior="removed", invert=True)
    else:
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        limit_alphabet=max(256, vocab_size // 8),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
