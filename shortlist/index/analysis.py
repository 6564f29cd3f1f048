"""Analysers that split text into the words that BM25 counts.

There is one per language, one for languages written without spaces, one for source code, and one that only splits at
white space.
"""

import hashlib
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import pairwise

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
_MEASURED = regex.compile("(?:[aeiou]|(?<=[^aeiou])y)[^aeiou]")
"""A vowel before a consonant; y is a vowel after a consonant."""
_NO_CACHE = 0  # PyStemmer sorts a full cache; with the rare words of a large corpus that is 5 times as slow as no cache
_PORTER = Stemmer.Stemmer("porter", _NO_CACHE)
_NOT_LANGUAGES = {"english", "porter", "lovins", "dutch_porter", "kraaij_pohlmann", "german2"}
LANGUAGES = tuple(sorted({*Stemmer.algorithms()} - _NOT_LANGUAGES))
"""The languages of `snowball`, besides English; bm25s has stop words for some of them."""
UNSPACED = ("chinese", "japanese", "korean")
"""The languages of `bigrams`."""
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー"
_CHARACTERS = regex.compile(rf"[{_CJK}]+|[^{_CJK}]+")
_HAN = regex.compile(r"\p{Han}")
_CJK_FIRST = regex.compile(rf"[{_CJK}]")
_LATE_ENDING = regex.compile(r"(?:[iy](?:ed|ing)?s?|ies)")


def english(text: str) -> list[str]:
    """Split English text as Lucene's EnglishAnalyzer does.

    Words are in lower case and stemmed by Porter, with the two rules that he added later; possessive 's and stop words
    are dropped.

    https://lucene.apache.org/core/9_11_0/analysis/common/org/apache/lucene/analysis/en/EnglishAnalyzer.html
    """
    words = _english_words(text)
    stems = _stems(words)
    return [
        _late_rules(word, stem) if stem.endswith(("bli", "logi")) else stem
        for word, stem in zip(words, stems, strict=True)
    ]


def first_english(text: str) -> list[str]:
    """Split English text as `english` did before it had Porter's later rules."""
    return _stems(_english_words(text))


def _english_words(text: str) -> list[str]:
    words = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
    return [word for word in words if word not in STOP_WORDS and word.strip("_")]


def _late_rules(word: str, stem: str) -> str:
    """Stem a word by the rules that Porter added later.

    In his second step, bli becomes ble, and logi becomes log. Without these rules the word went unchanged through that
    step and all after it, if it ended so before them. What they make of it has none of the first two steps' endings, so
    that the stemmer goes on with the third.

    https://tartarus.org/martin/PorterStemmer/
    """
    ending, instead = ("bli", "ble") if stem.endswith("bli") else ("logi", "log")
    before = stem.removesuffix(ending)
    if not _MEASURED.search(before) or not _LATE_ENDING.fullmatch(word[len(stem) - 1 :]):
        return stem
    return _PORTER.stemWord(before + instead)


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


def bigrams(text: str) -> list[str]:
    """Split Chinese, Japanese or Korean text into pairs of neighbouring characters.

    A Han character is a word by itself too, and so is a character without neighbours. Wide and narrow forms are made
    alike, and the words of other scripts are in lower case, as in Lucene's CJKAnalyzer.

    https://lucene.apache.org/core/9_11_0/analysis/common/org/apache/lucene/analysis/cjk/CJKAnalyzer.html
    """
    words: list[str] = []
    for part in _CHARACTERS.findall(unicodedata.normalize("NFKC", text).lower()):
        if not _CJK_FIRST.match(part):
            words += [word for word in _WORD.findall(part) if word.strip("_")]
        elif len(part) == 1:
            words.append(part)
        else:
            words += map("".join, pairwise(part))
            words += _HAN.findall(part)
    return words


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
    **dict.fromkeys(UNSPACED, bigrams),
}
BEFORE: dict[str, Analyser] = ANALYSERS | {"english": first_english}
"""The analysers of indexes that were built before `english` had Porter's later rules."""

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
