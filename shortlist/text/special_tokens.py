"""Special tokens that a tokenizer adds around texts, as pieces of an input contract."""

from collections.abc import Sequence
from typing import Any

from shortlist.errors import UserError
from shortlist.text.contract import SPECIAL
from shortlist.text.templates import literal

SAMPLES = ("a", "b")


def around_one(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Find the pieces before and after one text.

    Raises:
        UserError: the tokenizer changes the text itself when it adds special tokens.
    """
    [one] = _bare(tokenizer, SAMPLES[:1])
    whole = tokenizer(SAMPLES[0])["input_ids"]
    start = _find(tokenizer, one, whole, 0)
    return _pieces(tokenizer, whole[:start]), _pieces(tokenizer, whole[start + len(one) :])


def around_two(tokenizer: Any) -> tuple[list[str], list[str], list[str]]:
    """Find the pieces before, between and after two texts.

    Raises:
        UserError: the tokenizer changes the texts themselves when it adds special tokens.
    """
    one, two = _bare(tokenizer, SAMPLES)
    whole = tokenizer(*SAMPLES)["input_ids"]
    first = _find(tokenizer, one, whole, 0)
    second = _find(tokenizer, two, whole, first + len(one))
    parts = whole[:first], whole[first + len(one) : second], whole[second + len(two) :]
    start, middle, end = (_pieces(tokenizer, part) for part in parts)
    return start, middle, end


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _find(tokenizer: Any, part: list[int], whole: list[int], start: int) -> int:
    for place in range(start, len(whole) - len(part) + 1):
        if part and whole[place : place + len(part)] == part:
            return place
    raise UserError(
        f"{tokenizer.name_or_path}: the special tokens that the tokenizer adds cannot be told from the text; name a "
        "--contract."
    )


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Turn special tokens into pieces.

    Tokens with a name in the contract get that name; if a token has two, `<cls>` and `<sep>` go before `<bos>` and
    `<eos>`. Other tokens stand for themselves.
    """
    names = {getattr(tokenizer, SPECIAL[piece]): piece for piece in ("<bos>", "<eos>", "<cls>", "<sep>")}
    return [names.get(i) or literal(tokenizer.convert_ids_to_tokens(i)) for i in ids]
