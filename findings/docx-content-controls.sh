#!/usr/bin/env bash
# python-docx 1.2.0: text in a content control or in a tracked insertion is in no paragraph's text.
#
# Both are what Word writes for a filled-in form field and for "track changes"; a reader sees the words. A control around a
# whole paragraph hides it from `paragraphs` and `iter_inner_content`, a control or insertion within one leaves a hole.
# Text that is cut out of a document by such a program is silently shorter, in contracts and forms above all.
#
# Seen: 'The tenant pays  euros .' for 'The tenant pays 900 euros monthly.', and a paragraph less than there are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet python-docx==1.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import docx
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

W = nsdecls("w")


def run(text):
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


document = docx.Document()
paragraph = document.add_paragraph("The tenant pays ")._p
paragraph.append(parse_xml(f"<w:sdt {W}><w:sdtPr/><w:sdtContent>{run('900')}</w:sdtContent></w:sdt>"))
paragraph.append(parse_xml(f"<w:r {W}><w:t xml:space='preserve'> euros </w:t></w:r>"))
paragraph.append(parse_xml(f'<w:ins {W} w:id="1" w:author="A" w:date="2026-01-01T00:00:00Z">{run("monthly")}</w:ins>'))
paragraph.append(parse_xml(f"<w:r {W}><w:t>.</w:t></w:r>"))
whole = f"<w:sdt {W}><w:sdtPr/><w:sdtContent><w:p>{run('Heating is not included.')}</w:p></w:sdtContent></w:sdt>"
document.element.body.insert(1, parse_xml(whole))
document.save("lease.docx")

read = docx.Document("lease.docx")
texts = [paragraph.text for paragraph in read.paragraphs]
inner = [part.text for part in read.iter_inner_content()]
print("paragraphs:", texts)
print("iter_inner_content:", inner)
assert texts == inner == ["The tenant pays  euros ."]
assert all(word in document.element.xml for word in ("900", "monthly", "Heating"))
PYTHON
