"""Fixtures that every room's tests share."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from checking import check_types
from hypothesis import settings

if TYPE_CHECKING:
    from tiny import Tiny
    from transformers import PreTrainedTokenizerFast

check_types()
settings.register_profile("patient", deadline=None)  # how long a test takes is the machine's business
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # or a process is left alone with a slow file at the end


def pytest_collection_finish() -> None:
    gc.freeze()  # garbage is looked for among what tests make, and not in all that they import


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real collections and weights that live beside the repository, never in it."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def bpe_pieces() -> Path:
    """The pieces of a real byte-level BPE tokenizer, best first, from a package's data."""
    package = pytest.importorskip("llama_index.core", reason="needs the real BPE pieces in that package")
    pieces = Path(package.__file__).parent / "_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    if not pieces.exists():
        pytest.skip("needs the real BPE pieces, which that package no longer has")
    return pieces


@pytest.fixture(scope="session")
def cl100k(bpe_pieces: Path) -> "PreTrainedTokenizerFast":
    """A tokenizer of all 100,256 pieces, with <|begin|> and <|end|>."""
    return byte_level(bpe_pieces)


@pytest.fixture(scope="session")
def small_bpe(bpe_pieces: Path, tmp_path_factory: pytest.TempPathFactory) -> "PreTrainedTokenizerFast":
    """A tokenizer of the best 8,000 pieces, which loads ten times faster."""
    best = tmp_path_factory.mktemp("bpe") / "pieces"
    best.write_bytes(b"".join(bpe_pieces.read_bytes().splitlines(keepends=True)[:8000]))
    return byte_level(best)


@pytest.fixture(scope="session")
def qwen() -> "PreTrainedTokenizerFast":
    """Qwen's tokenizer, from a client package's data, with the tokens of its chat."""
    from importlib.util import find_spec

    package = find_spec("dashscope")
    if package is None or package.origin is None:
        pytest.skip("needs Qwen's real BPE pieces in the package dashscope")
    tokenizer = byte_level(Path(package.origin).parent / "resources/qwen.tiktoken")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token = None
    return tokenizer


def byte_level(pieces: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    fast = TikTokenConverter(vocab_file=str(pieces), pattern=pattern, extra_special_tokens=special).converted()
    names = {"pad_token": special[0], "bos_token": special[1], "eos_token": special[2]}
    return PreTrainedTokenizerFast(tokenizer_object=fast, **names, padding_side="right")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """A collection and models in a folder that every test may read and none may change."""
    from tiny import write_all

    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal language model with a head, 4,096 positions and a chat template."""
    from tiny import write_speaker

    return write_speaker(tmp_path_factory.mktemp("language-model"), num_hidden_layers=2, max_position_embeddings=4096)
