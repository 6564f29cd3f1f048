"""Archives of documents: bounded unpacking, and XML that fetches and expands nothing."""

from typing import Any
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

from shortlist.data.lines import MalformedError
from shortlist.data.reading.wholes import MOST_DOCUMENT_BYTES, SourceFile, library

OLE = b"\xd0\xcf\x11\xe0"
"""First bytes of Office's older files, in which newer ones with a password are wrapped."""


def open_archive(file: SourceFile) -> ZipFile:
    """Open an archive that unpacks to a bounded size.

    Raises:
        MalformedError: it is none, has a password, or unpacks to too much.
    """
    with open(file.path, "rb") as opened:
        if opened.read(4) == OLE:
            raise MalformedError("has a password, or is of an older version of Office; save it anew without one.")
    try:
        archive = ZipFile(file.path)
    except (BadZipFile, ValueError) as error:
        raise MalformedError(f"is damaged ({error}); fetch it again.") from None
    if sum(member.file_size for member in archive.infolist()) > MOST_DOCUMENT_BYTES:
        raise MalformedError(f"unpacks to more than {MOST_DOCUMENT_BYTES >> 20} MiB; leave it out.")
    return archive


def read_member(archive: ZipFile, name: str) -> bytes:
    """Read a file of an archive; no more of it than the archive says.

    Raises:
        MalformedError: it is missing, damaged, or has a password.
    """
    try:
        with archive.open(name) as member:
            return member.read(MOST_DOCUMENT_BYTES)
    except KeyError:
        raise MalformedError(f"is damaged: {name} is missing in it; fetch it again.") from None
    except RuntimeError:  # as zipfile calls it
        raise MalformedError("has a password; save it without one.") from None
    except (BadZipFile, ZlibError, EOFError, NotImplementedError) as error:
        raise MalformedError(f"is damaged ({error}); fetch it again.") from None


def parse_xml(data: bytes, where: str) -> Any:
    """Parse XML, without entities, document types or anything from a network.

    Raises:
        MalformedError: it is not XML.
    """
    etree = library("lxml.etree")
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False)
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise MalformedError(
            f"is damaged: {where} is not XML ({str(error).splitlines()[0]}); fetch it again."
        ) from None
