"""Analysers that split text into the words that BM25 counts.

There is one per language, one for source code, and one that only splits at white space.
"""

import hashlib
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import regex
import Stemmer
from bm25s import stopwords

Analyser = Callable[[str], list[str]]

# The word boundaries of UAX #29, as far as they matter for splitting text into words: letters and digits stick
# together, ' . : join letters, ' . , ; join digits, and each ideograph or hiragana sign is a word of its own.
_WORD = regex.compile(
    r"""[\p{Han}\p{Hiragana}]
    | [\w--[\p{Han}\p{Hiragana}]]+
      (?: (?: (?<=[^\W\d_]) [.'’:·] (?=[^\W\d_]) | (?<=\d) [.,;'’] (?=\d) ) [\w--[\p{Han}\p{Hiragana}]]+ )*""",
    regex.VERSION1 | regex.VERBOSE,
)
_POSSESSIVE = regex.compile(r"(?<=\w)['’＇]s\b")
_APOSTROPHE = regex.compile(r"(?<=\p{L})['’＇](?=\p{L})")
_IDENTIFIER = regex.compile(r"\w+")
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?\p{Ll}+|\p{N}+|[^\W_\p{Lu}\p{Ll}\p{N}]+")
# The 33 stop words of Lucene's EnglishAnalyzer.
STOP_WORDS = frozenset(
    _IDENTIFIER.findall(
        "a an and are as at be but by for if in into is it no not of on or such "
        "that the their then there these they this to was will with"
    )
)
_NO_CACHE = 0  # PyStemmer sorts a full cache; with the rare words of a large corpus that is 5 times as slow as no cache
_PORTER = Stemmer.Stemmer("porter", _NO_CACHE)
LANGUAGES = (
    *("danish", "dutch", "french", "german", "italian", "norwegian", "portuguese", "russian", "spanish", "swedish"),
    *("turkish", "catalan", "finnish", "greek", "hungarian", "romanian"),
)
"""The languages of `snowball`, besides English; bm25s has no stop words for the last five."""


def english(text: str) -> list[str]:
    """Split English text as Lucene's EnglishAnalyzer does.

    Words are in lower case and stemmed by Porter; possessive 's and stop words are dropped.

    https://lucene.apache.org/core/9_11_0/analysis/common/org/apache/lucene/analysis/en/EnglishAnalyzer.html
    """
    words = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
    return _stems([word for word in words if word not in STOP_WORDS and word.strip("_")])


def code(text: str) -> list[str]:
    """Split source code, or a question about it, into words.

    Identifiers are split at underscores and capitals. The parts are treated as English words, and the whole identifier
    is kept too: `parseISODate` becomes pars, iso, date and parseisodate.
    """
    identifiers = [(name.lower(), _PART.findall(name)) for name in _IDENTIFIER.findall(text)]
    parts = [part.lower() for _, parts in identifiers for part in parts]
    wholes = [name for name, parts in identifiers if len(parts) > 1]
    return _stems([part for part in parts if part not in STOP_WORDS]) + wholes


def whitespace(text: str) -> list[str]:
    """Split text at white space, for text that is already split into words."""
    return text.split()


def snowball(language: str) -> Analyser:
    """Make the analyser of a language in LANGUAGES.

    Words are in lower case and stemmed by Snowball, without stop words. An apostrophe between letters separates two
    words, since it joins an article (l'eau, dell'arte) or an ending (Ankara'nın) to a word; `english` keeps Lucene's
    rule instead.

    https://snowballstem.org
    """
    stop_words = frozenset(getattr(stopwords, f"STOPWORDS_{language.upper()}", ()))
    return partial(_snowball, Stemmer.Stemmer(language, _NO_CACHE), stop_words, language == "turkish")


def _snowball(stemmer: Stemmer.Stemmer, stop_words: frozenset[str], dotless: bool, text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text)  # the form of accents in the stop words and stemmers
    if dotless:  # Turkish lower-cases I to ı and İ to i
        text = text.replace("I", "ı").replace("İ", "i")
    words = _WORD.findall(_APOSTROPHE.sub(" ", text.lower()))
    return _stems([word for word in words if word not in stop_words and word.strip("_")], stemmer)


def _stems(words: list[str], stemmer: Stemmer.Stemmer = _PORTER) -> list[str]:
    """Stem words of three letters or more.

    Shorter words stay as they are, as in Lucene (Snowball would make "s" empty and "us" a "u").
    """
    return [stem if len(word) > 2 else word for word, stem in zip(words, stemmer.stemWords(words), strict=True)]


ANALYSERS: dict[str, Analyser] = {
    "english": english,
    "code": code,
    "whitespace": whitespace,
    **{language: snowball(language) for language in LANGUAGES},
}

VERSIONED = ("PyStemmer",)
"""Libraries whose version an index keeps."""
_PROBE = (
    "possibly archaeology technology assembly relational conflated caresses ponies hopefulness "
    "lichamelijk mueller schoen schöne maisons généralement città ciudades pequeños våra bilarna människor "
    "kirjastossa книгами βιβλία könyvtárakban cărțile evlerimizden nacional İstanbul IŞIK parseISODate l'eau user's"
)
"""Words whose stems have differed between releases of Snowball, and others of every language."""


def dependencies(analyser: str) -> dict[str, str]:
    """Describe what the words of an analyser depend on: libraries, stop words and stems.

    An index keeps this, since words that are split in another way find nothing in it.

    Returns:
        Versions of libraries by name, and a digest of stop words and stems; nothing for `whitespace`.
    """
    if analyser == "whitespace":
        return {}
    stop_words = sorted(STOP_WORDS | set(getattr(stopwords, f"STOPWORDS_{analyser.upper()}", ())))
    split = [ANALYSERS[analyser](word) for word in (*stop_words, *_PROBE.split())]
    digest = hashlib.sha256(repr([stop_words, split]).encode()).hexdigest()
    return {name: version(name) for name in VERSIONED} | {"stop words and stems": digest}
