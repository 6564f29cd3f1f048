"""Hashes by which equal texts are recognised."""

from hashlib import blake2b

from shortlist.records import Document


def text_hash(text: str) -> int:
    """Hash a text to 64 bits, ignoring case and white space."""
    words = text.casefold().split()
    return int.from_bytes(blake2b(" ".join(words).encode(), digest_size=8).digest())


def document_text_hash(document: Document) -> int:
    """Hash a document's text, or its title if there is no text."""
    return text_hash(document.text if document.text.strip() else document.title)
