import unicodedata

import pytest
from bm25s import stopwords

from shortlist.index.analysis import ANALYSERS, LANGUAGES, STOP_WORDS, bigrams, code, english, first_english, whitespace
from shortlist.index.languages import CODES, language_name


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
        ("possibly archaeology technology assembly", ["possibl", "archaeolog", "technolog", "assembl"]),
        ("assemblies archaeologies possiblying", ["assembl", "archaeolog", "possibl"]),
        ("geology nobly ably capably logy bly", ["geologi", "nobli", "abli", "capabl", "logi", "bly"]),  # none measured
        ("wobbliness logical", ["wobbli", "logic"]),  # the ending comes after the second step
        ("syzygybly", ["syzygybl"]),  # y is a vowel after a consonant
    ],
)
def test_english_words_are_those_of_lucenes_english_analyzer(text: str, expected: list[str]):
    assert english(text) == expected


def test_english_words_of_before_are_those_of_porters_paper():
    text = "possibly archaeology technology assembly relational"
    assert first_english(text) == ["possibli", "archaeologi", "technologi", "assembli", "relat"]


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
        ("arabic", "الكتاب كتب", ["كتاب", "كتب"]),
        ("hindi", "किताबें किताब", ["किताब", "किताब"]),
        ("polish", "książki książka", ["książk", "książk"]),
        ("czech", "knihy kniha", ["knih", "knih"]),
    ],
)
def test_languages_lose_their_stop_words_articles_and_endings(language: str, text: str, expected: list[str]):
    assert ANALYSERS[language](text) == expected


@pytest.mark.parametrize("language", sorted(ANALYSERS.keys() & {"french", "german", "spanish"}))
def test_accents_may_be_spelled_as_letters_of_their_own(language: str):
    text = "Élèves Mäuse niñas à"
    assert ANALYSERS[language](unicodedata.normalize("NFD", text)) == ANALYSERS[language](text)


@pytest.mark.parametrize("language", [name for name in LANGUAGES if hasattr(stopwords, f"STOPWORDS_{name.upper()}")])
def test_no_stop_word_is_left(language: str):
    words = getattr(stopwords, f"STOPWORDS_{language.upper()}")
    assert ANALYSERS[language](" ".join(words)) == []


@pytest.mark.parametrize("name", ANALYSERS)
def test_no_word_is_empty_and_text_without_words_has_none(name: str):
    assert all(ANALYSERS[name]("a I s us 's ' e' l'a été ß İ 1 x_y été's"))
    assert ANALYSERS[name](" \n\t ") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("東京都 Ｔｏｋｙｏ 2020", ["東京", "京都", "東", "京", "都", "tokyo", "2020"]),
        ("カメラー ｶﾒ", ["カメ", "メラ", "ラー", "カメ"]),
        ("한국어 책", ["한국", "국어", "책"]),
        ("水, x_y __", ["水", "x_y"]),
    ],
)
def test_languages_without_spaces_are_split_into_pairs_of_characters(text: str, expected: list[str]):
    assert bigrams(text) == expected
    assert all(ANALYSERS[language] is bigrams for language in ("chinese", "japanese", "korean"))


def test_a_language_may_be_given_by_its_code():
    assert [language_name(name) for name in ("en", "ZH", "German", "code")] == ["english", "chinese", "german", "code"]
    assert set(LANGUAGES) <= set(CODES.values())
    assert {"arabic", "hindi", "dutch", "german"} <= set(LANGUAGES)
