"""Mail: single messages (.eml) and boxes of them (.mbox)."""

import email
import mailbox
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from typing import Any

from shortlist.data.lines import MalformedError
from shortlist.data.reading.decoding import decode
from shortlist.data.reading.html import html_document
from shortlist.data.reading.wholes import SourceFile, Whole, read_bytes
from shortlist.text.chunks import Section

MAIL_HEADERS = {"from": "from", "to": "to", "cc": "cc", "message-id": "message_id"}


def read_message(file: SourceFile) -> Iterator[Whole]:
    """Yield the message."""
    yield message_document(read_bytes(file.path), "")


def read_mailbox(file: SourceFile) -> Iterator[Whole]:
    """Yield each message."""
    box = mailbox.mbox(file.path, create=False)
    try:
        if not len(box):
            raise MalformedError("holds no messages; expected lines that begin with `From `.")
        for number, key in enumerate(box.iterkeys(), 1):
            try:
                yield message_document(box.get_bytes(key), str(number))
            except MalformedError as error:
                file.on_bad(f"{file.path}: message {number:,}: {error}")
    finally:
        box.close()


def message_document(data: bytes, name: str) -> Whole:
    """Read a message: its subject is the title; of attachments only the names are kept.

    Raises:
        MalformedError: it is no message.
    """
    try:
        message = email.message_from_bytes(data, policy=default)
        assert isinstance(message, EmailMessage)
        if not message.keys():
            raise MalformedError("has no headers, as a message has; leave it out.")
        fields: dict[str, Any] = {}
        for header, field in MAIL_HEADERS.items():
            if value := _header(message, header):
                fields[field] = value
        if date := _date(message):
            fields["date"] = date
        names = [part.get_filename() for part in message.iter_attachments()]
        if attachments := [attached for attached in names if attached]:
            fields["attachments"] = attachments
        body = message.get_body(("plain", "html"))
        sections = _sections(body) if body is not None else []
        return Whole(sections, _header(message, "subject"), name, metadata=fields)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # of the package email
        if isinstance(error, MalformedError):
            raise
        raise MalformedError(f"is a damaged message ({error}); leave it out.") from None


def _header(message: EmailMessage, name: str) -> str:
    return " ".join(str(message.get(name, "")).split())


def _date(message: EmailMessage) -> str:
    try:
        return parsedate_to_datetime(str(message["date"])).isoformat()
    except (TypeError, ValueError):
        return ""


def _sections(body: Any) -> list[Section]:
    data = body.get_payload(decode=True) or b""
    try:
        text = data.decode(body.get_content_charset() or "utf-8")
    except (UnicodeDecodeError, LookupError):
        text, _ = decode(data)
    if body.get_content_type() == "text/html":
        return list(html_document(text, {}).sections)
    text = text.replace("\r\n", "\n")
    return [Section(text)] if text.strip() else []
