"""Extracts of long documents: the sentences that hold most of a query's words."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shortlist.records import Document, Query
from shortlist.text.chunks import SENTENCE
from shortlist.text.inputs import Inputs
from shortlist.text.segments import FEWEST_TOKENS

DECAY = 0.5
"""Factor for the weight of a query's word each time that a chosen sentence holds it."""
ENDS = re.compile(rf"{SENTENCE.pattern}|\s[.!?]\s+")
"""Ends of sentences, also in texts that were split into words and lower-cased."""
A_WORD = re.compile(r"\w+")

Span = tuple[int, int]
"""Beginning and end of a piece of a text, in characters or in tokens."""


def words_of(text: str) -> set[str]:
    """Return the words of a text in lower case, without a plural's s."""
    return {word.removesuffix("s") if len(word) > 3 else word for word in A_WORD.findall(text.lower())}


def word_weights(query: str, documents: Sequence[str]) -> dict[str, float]:
    """Weigh a query's words by how few of its candidates hold them.

    Of N candidates, a word that n hold has ln(1 + (N - n + 0.5) / (n + 0.5)), and a word that none holds no weight.
    """
    wanted = words_of(query)
    counts = Counter(word for document in documents for word in words_of(document) & wanted)
    return {word: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for word, n in counts.items()}


def choose_pieces(
    pieces: Sequence[set[str]], lengths: Sequence[int], weights: Mapping[str, float], *, room: int, decay: float = DECAY
) -> dict[int, int]:
    """Choose the pieces of a text that hold most of a query's words.

    The piece with the highest sum of weights comes first, then the weights of its words are multiplied by `decay`. The
    last one is cut to the room that is left. Of equally good pieces the first is chosen, so room that is left over goes
    to the beginning of the text.

    Args:
        pieces: words of each piece.
        lengths: length of each piece, such as its tokens.
        weights: weight of each of the query's words.
        room: most that the chosen ones may be long together.

    Returns:
        How much of each chosen piece is kept, by its place, in the text's order.

    https://arxiv.org/abs/2105.11108
    """
    left, kept = dict(weights), dict[int, int]()
    waiting = {place: words & left.keys() for place, words in enumerate(pieces)}
    while waiting and room > 0:
        place = max(waiting, key=lambda one: (sum(left[word] for word in waiting[one]), -one))
        words = waiting.pop(place)
        kept[place] = min(lengths[place], room)
        room -= kept[place]
        left |= {word: left[word] * decay for word in words}
    return dict(sorted(kept.items()))


def sentences(text: str) -> list[Span]:
    """Find the characters of each sentence; together they are the whole text."""
    starts = [0, *(found.end() for found in ENDS.finditer(text) if found.end() < len(text))]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def extract(text: str, tokens: Sequence[Span], weights: Mapping[str, float], *, room: int, decay: float = DECAY) -> str:
    """Return the sentences that hold most of a query's words, in the text's order.

    Args:
        tokens: first character and end of each token.
        weights: weight of each of the query's words.
        room: most tokens of the extract.
    """
    spans = _sentence_tokens(text, tokens)
    texts = [text[tokens[start][0] : tokens[end - 1][1]] for start, end in spans]
    lengths = [end - start for start, end in spans]
    kept = choose_pieces(list(map(words_of, texts)), lengths, weights, room=room, decay=decay)
    ends = {place: tokens[spans[place][0] + count - 1][1] for place, count in kept.items()}
    return " ".join(text[tokens[spans[place][0]][0] : end].strip() for place, end in ends.items())


def _sentence_tokens(text: str, tokens: Sequence[Span]) -> list[Span]:
    """Divide a text's tokens among its sentences."""
    spans, start = list[Span](), 0
    for _, end in sentences(text):
        stop = start
        while stop < len(tokens) and tokens[stop][0] < end:
            stop += 1
        if stop > start:
            spans.append((start, stop))
        start = stop
    return spans


def pair_extracts(inputs: Inputs, query: Query, documents: Sequence[Document]) -> list[Document]:
    """Shorten the candidates of one query to extracts that fit beside it, with their titles.

    Args:
        inputs: their pair length is that of the query with an extract.
        documents: all of the query's candidates, in which its words are counted.
    """
    bare = inputs.pair_ids([(query, document._replace(text="")) for document in documents], cut=False)
    whole = inputs.pair_ids([(query, document) for document in documents], cut=False)
    length = inputs.form.pair_length
    weights = word_weights(query.text, [f"{document.title} {document.text}" for document in documents])
    long = [i for i, ids in enumerate(whole) if len(ids) > length and length - len(bare[i]) > FEWEST_TOKENS]
    shorter = list(documents)
    for i, spans in zip(long, inputs.token_spans([documents[i].text for i in long]), strict=True):
        room = length - len(bare[i]) - 1  # text may take one token more after a prompt than alone
        shorter[i] = documents[i]._replace(text=extract(documents[i].text, spans, weights, room=room))
    return shorter
