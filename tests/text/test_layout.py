from shortlist.text.conversations import Frame
from shortlist.text.layout import NO_DOCUMENTS, Laid, framed, join_laid, laid_out


def test_a_documents_place_is_from_its_piece_to_the_end_of_its_text():
    values = {"query": "q", "label": "1", "document": "a {b}"}
    laid = laid_out("[{label}] {document} ({query})\n", values, NO_DOCUMENTS)
    assert laid.text == "[1] a {b} (q)\n"
    assert [laid.text[start:end] for start, end in laid.documents] == ["[1] a {b}"]
    assert [laid.text[start:end] for start, end in laid.queries] == ["q"]


def test_places_move_with_their_texts():
    pieces = join_laid([Laid("[1] a", [(0, 5)], []), Laid("[2] a", [(0, 5)], [])], "; ")
    laid = laid_out("{query}: {documents} {query}", {"query": "q"}, pieces)
    assert laid.text == "q: [1] a; [2] a q"
    assert laid.documents == [(3, 8), (10, 15)]
    assert laid.queries == [(0, 1), (16, 17)]


def test_white_space_that_a_chat_strips_moves_places():
    frame = Frame(("<", ">"), ((True, True),))
    laid = framed(frame, [Laid("  a b \n", [(0, 5), (5, 7)], [(2, 3)])])
    assert laid.text == "<a b>"
    assert laid.documents == [(1, 4), (4, 4)]
    assert laid.queries == [(1, 2)]
    kept = framed(Frame(("<", ">"), ((False, False),)), [Laid(" a ", [(1, 2)], [])])
    assert (kept.text, kept.documents) == ("< a >", [(2, 3)])
