"""Token ids that clients of OpenAI send in place of texts, turned back into texts."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any, cast

from shortlist.serve.service import FieldError

DEFAULT = "cl100k_base"
"""Vocabulary of ids for a model that OpenAI does not have, as LangChain chooses it."""
VOCABULARY_SECONDS = 10
"""Longest time to wait for a vocabulary, which tiktoken may have to fetch."""
INSTEAD = "send texts instead: LangChain's OpenAIEmbeddings(check_embedding_ctx_length=False) does"


async def to_texts(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], model: str | None
) -> list[str]:
    """Return texts as a list, and decode token ids of OpenAI's tokenizer for a model.

    Raises:
        FieldError: the ids are unknown, or tiktoken or its vocabulary is not here.
    """
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], str):
        return list(cast(Sequence[str], given))
    ids = cast(Any, [given] if given and isinstance(given[0], int) else given)
    encoding = await _encoding(model or "")
    try:
        return [encoding.decode(list(text_ids)) for text_ids in ids]
    except (KeyError, OverflowError):
        raise FieldError("input", f"holds token ids that are not in OpenAI's {encoding.name}; {INSTEAD}") from None


async def _encoding(model: str) -> Any:
    try:
        async with asyncio.timeout(VOCABULARY_SECONDS):
            return await asyncio.shield(asyncio.wrap_future(_loading(_vocabulary(model))))
    except Exception as error:
        reason = str(error).splitlines() or [type(error).__name__]
        found = f"holds token ids, and OpenAI's vocabulary for them is not here ({reason[0][:150]})"
        raise FieldError("input", f"{found}; {INSTEAD}") from None


def _vocabulary(model: str) -> str:
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(model)
    except KeyError:
        return DEFAULT


@cache
def _loading(vocabulary: str) -> "Future[Any]":
    """Load a vocabulary in another thread, as tiktoken may wait for the network."""
    from tiktoken import get_encoding

    loading: Future[Any] = Future()

    def load() -> None:
        try:
            loading.set_result(get_encoding(vocabulary))
        except Exception as error:
            loading.set_exception(error)

    threading.Thread(target=load, name="vocabulary", daemon=True).start()
    return loading
