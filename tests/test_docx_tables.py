"""Tables as DOCX: cell by cell those of the page, in journal style, the same bytes on every day."""

import io
import time
import zipfile

import docx
import pytest
from docx.enum.section import WD_ORIENT
from docx.oxml.ns import qn

from haemex.docx_tables import Cell, docx_bytes, read_tables, write_docx

PAGE = """<!DOCTYPE html><html><body><img src="data:image/png;base64,{picture}">
<table><tr><td>no caption: layout, not a table of the report</td></tr></table>
<div class="scroll"><table><caption><b>Table 1.</b> First,
  with <code>code</code> &amp; a line break.</caption>
<thead><tr><th>Row</th><th class="n">AUC</th></tr></thead>
<tbody><tr class="group"><th colspan="2">Group</th></tr>
<tr class="indent"><th scope="row">a &lt; b</th><td class="n">−0.50 (0.10 to 0.90)</td></tr>
<tr class="own"><th scope="row">CNN</th><td class="n"></td></tr></tbody></table></div>
<div class="foot"><p>* One.</p><p>† Two.</p></div>
<div class="scroll"><table><caption><b>Table S1.</b> Wide</caption>
<thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table></div>
</body></html>"""


@pytest.fixture(scope="module")
def page():
    return PAGE.format(
        picture="A" * 11_000_000,  # beyond what libxml2 takes in one attribute
        heads="".join(f"<th>Heading number {k}</th>" for k in range(8)),
        cells="".join(f"<td>{k}</td>" for k in range(8)),
    )


@pytest.fixture(scope="module")
def document(page):
    return docx.Document(io.BytesIO(docx_bytes(read_tables(page), "Study x")))


def printed(table):
    """Texts of a table's rows; a merged cell once."""
    return [[cell.text for cell in dict.fromkeys(row.cells)] for row in table.rows]


def test_tables_of_a_page_by_hand(page):
    first, second = read_tables(page)
    assert (first.number, first.caption) == ("Table 1", "First, with code & a line break.")
    assert [[cell.text for cell in row] for row in first.header] == [["Row", "AUC"]]
    assert first.body[0] == [Cell("Group", span=2, bold=True)]
    assert first.body[1] == [Cell("a < b", indent=True), Cell("−0.50 (0.10 to 0.90)", right=True)]
    assert first.body[2] == [Cell("CNN", bold=True), Cell("", right=True)]
    assert first.footnotes == ["* One.", "† Two."] and second.footnotes == []
    assert second.columns == 8


def test_cell_by_cell_the_same(page, document):
    tables = read_tables(page)
    assert len(document.tables) == len(tables)
    for html, written in zip(tables, document.tables, strict=True):
        assert printed(written) == [[cell.text for cell in row] for row in [*html.header, *html.body]]
    words = [paragraph.text for paragraph in document.paragraphs if paragraph.text]
    assert words == ["Table 1. First, with code & a line break.", "* One.", "† Two.", "Table S1. Wide"]


def test_journal_style(document):
    upright, wide = document.sections
    assert upright.orientation == WD_ORIENT.PORTRAIT and upright.page_width < upright.page_height
    assert wide.orientation == WD_ORIENT.LANDSCAPE and wide.page_width > wide.page_height
    for table, section in zip(document.tables, document.sections, strict=True):
        first, last = table.rows[0], table.rows[-1]
        repeated = [row for row in table.rows if row._tr.trPr.find(qn("w:tblHeader")) is not None]
        assert [row._tr for row in repeated] == [first._tr]
        assert all(row._tr.trPr.find(qn("w:cantSplit")) is not None for row in table.rows)
        sides = {side.tag.split("}")[1] for one in table._tbl.iter(qn("w:tcBorders")) for side in one}
        assert sides == {"top", "bottom"}, "horizontal rules only"
        ruled = [
            "".join(side.tag.split("}")[1][0] for one in row._tr.iter(qn("w:tcBorders")) for side in one)
            for row in table.rows
        ]
        assert set(ruled[0]) == {"t", "b"} and set(ruled[-1]) == {"b"} and not "".join(ruled[1:-1])
        assert last is not first
        room = section.page_width - section.left_margin - section.right_margin
        assert 0.98 * room < sum(column.width for column in table.columns) <= room
    assert document.styles["Normal"].font.size.pt == 8


def test_the_same_bytes_whenever(page, tmp_path, monkeypatch):
    write_docx(page, tmp_path / "a.docx", "x")
    now = time.time() + 4e6
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(now))
    write_docx(page, tmp_path / "b.docx", "x")
    assert (tmp_path / "a.docx").read_bytes() == (tmp_path / "b.docx").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.docx") as packed:
        assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980-01-01" in packed.read("docProps/core.xml")
