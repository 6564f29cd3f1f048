import unicodedata

import pytest
from bm25s import stopwords

from shortlist.index.analysis import ANALYSERS, LANGUAGES, STOP_WORDS, code, english, whitespace


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats' owner's house", ["cat", "owner", "hous"]),
        ("O'Neil’s U.S.A. wi-fi", ["o'neil", "u.s.a", "wi", "fi"]),
        ("1,000.5 km² at 3.14; x,y C++", ["1,000.5", "km", "3.14", "x", "y", "c"]),
        ("foo_bar __ naïve été", ["foo_bar", "naïv", "été"]),
        ("東京 हिन्दी", ["東", "京", "हिन्दी"]),
        ("us s relational conditional", ["us", "s", "relat", "condit"]),
        ("to be or not to be", []),
    ],
)
def test_english_words_are_those_of_lucenes_english_analyzer(text: str, expected: list[str]):
    assert english(text) == expected


def test_there_are_lucenes_33_stop_words():
    assert len(STOP_WORDS) == 33


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseISODate", ["pars", "iso", "date", "parseisodate"]),
        ("HTTPServer2(snake_case)", ["http", "server", "2", "snake", "case", "httpserver2", "snake_case"]),
        ("for x in __init__:", ["x", "init"]),
        ("parsing dates", ["pars", "date"]),
    ],
)
def test_code_is_split_into_the_parts_of_identifiers_beside_the_whole(text: str, expected: list[str]):
    assert code(text) == expected


def test_white_space_alone_parts_words_that_nothing_is_to_change():
    assert whitespace(" The_cats' self.x\n+=  IDs ") == ["The_cats'", "self.x", "+=", "IDs"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("german", "Die Häuser der Stadt", ["haus", "stadt"]),
        ("french", "L’eau qu'aiment les chevaux", ["eau", "aiment", "cheval"]),
        ("italian", "Le opere dell'arte", ["oper", "arte"]),
        ("spanish", "las canciones de los niños", ["cancion", "niñ"]),
        ("russian", "Книги и дома", ["книг", "дом"]),
        ("turkish", "Ispanak ve İstanbul'un evleri", ["ıspanak", "istanbul", "un", "ev"]),
        ("finnish", "taloissa 3.14", ["talo", "3.14"]),
        ("swedish", "__ o_o", ["o_o"]),
    ],
)
def test_languages_lose_their_stop_words_articles_and_endings(language: str, text: str, expected: list[str]):
    assert ANALYSERS[language](text) == expected


@pytest.mark.parametrize("language", sorted(ANALYSERS.keys() & {"french", "german", "spanish"}))
def test_accents_may_be_spelled_as_letters_of_their_own(language: str):
    text = "Élèves Mäuse niñas à"
    assert ANALYSERS[language](unicodedata.normalize("NFD", text)) == ANALYSERS[language](text)


@pytest.mark.parametrize("language", LANGUAGES[:11])
def test_no_stop_word_is_left(language: str):
    words = getattr(stopwords, f"STOPWORDS_{language.upper()}")
    assert ANALYSERS[language](" ".join(words)) == []


@pytest.mark.parametrize("name", ANALYSERS)
def test_no_word_is_empty_and_text_without_words_has_none(name: str):
    assert all(ANALYSERS[name]("a I s us 's ' e' l'a été ß İ 1 x_y été's"))
    assert ANALYSERS[name](" \n\t ") == []
