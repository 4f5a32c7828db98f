"""The report's tables as a DOCX file, for a manuscript.

They are read from the finished HTML, so that the two cannot disagree: a cell of the one is a cell of the other.
"""

import io
import re
import zipfile
from dataclasses import dataclass, field
from datetime import datetime

from haemex.files import write_atomically

FONT, SIZE_PT = "Arial", 8.0
WIDE = 100  # characters of a table's widest cells, side by side, from which it gets a page in landscape
MARGIN_CM = 2.0
PAGE_CM = (21.0, 29.7)
# The least a DOCX can be dated, as everything in a zip file: the same tables give the same bytes on every day.
EPOCH = datetime(1980, 1, 1)


@dataclass(frozen=True)
class Cell:
    """A cell: its text, how many columns it spans, whether it is a number, bold or indented."""

    text: str
    span: int = 1
    right: bool = False
    bold: bool = False
    indent: bool = False


@dataclass(frozen=True)
class Table:
    """A numbered table: "Table 1", its caption, header and body rows of `Cell`, footnotes."""

    number: str
    caption: str
    header: list
    body: list
    footnotes: list = field(default_factory=list)

    @property
    def columns(self):
        """How many columns the table has."""
        return max(sum(cell.span for cell in row) for row in [*self.header, *self.body])


def read_tables(html):
    """Read the numbered tables of a page: those whose caption begins with "Table" and a number in bold.

    Parameters
    ----------
    html : str
        The page.

    Returns
    -------
    list of Table
        In the order of the page. Footnotes are the paragraphs of the `div` of class `foot` that follows a table.
    """
    import lxml.html

    # Pictures are megabytes of text that no table needs, and more than the parser takes in one attribute.
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True)
    page = lxml.html.fromstring(re.sub(r'src="data:[^"]*"', 'src=""', html).encode(), parser=parser)
    tables = []
    for table in page.iter("table"):
        label = table.find("./caption/b")
        if label is None or not re.match(r"Table S?\d+\.", label.text or ""):
            continue
        caption = _text(table.find("caption"))
        number = label.text.rstrip(".")
        box = table.getparent()
        follows = (box if "scroll" in (box.get("class") or "") else table).getnext()
        notes = follows is not None and "foot" in (follows.get("class") or "").split()
        tables.append(
            Table(
                number=number,
                caption=caption.removeprefix(f"{number}.").strip(),
                header=[_row(row) for row in table.findall("./thead/tr")],
                body=[_row(row) for row in table.findall("./tbody/tr")],
                footnotes=[_text(one) for one in follows.iter("p")] if notes else [],
            )
        )
    return tables


def _row(row):
    classes = (row.get("class") or "").split()
    return [
        Cell(
            text=_text(cell),
            span=int(cell.get("colspan", 1)),
            right="n" in (cell.get("class") or "").split(),
            bold=row.getparent().tag == "thead" or "group" in classes or ("own" in classes and cell.tag == "th"),
            indent="indent" in classes and cell.tag == "th",
        )
        for cell in row
        if cell.tag in ("th", "td")
    ]


def _text(element):
    return re.sub(r"[ \t\r\n]+", " ", element.text_content()).strip()


def write_docx(html, path, title):
    """Write every numbered table of a page to a DOCX file, whole or not at all.

    Journal style: rules above and below the header and below the table and none else, small type, the header repeated
    on every page, wide tables on pages in landscape, each table on a page of its own.

    Parameters
    ----------
    html : str
        The page.
    path : path-like
        The DOCX file. The same page and title give the same bytes.
    title : str
        Title of the document.
    """
    write_atomically(path, docx_bytes(read_tables(html), title))


def docx_bytes(tables, title):
    """Make the DOCX file of `write_docx` from a list of `Table`."""
    import docx
    from docx.shared import Pt

    document = docx.Document()
    for name in ("Normal", "Caption"):
        style = document.styles[name]
        style.font.name, style.font.size = FONT, Pt(SIZE_PT if name == "Normal" else SIZE_PT + 1)
        style.paragraph_format.space_after = Pt(0)
        style.paragraph_format.space_before = Pt(0)
    _speak(document.styles["Normal"], "en-GB")
    caption = document.styles["Caption"]
    caption.font.color.rgb, caption.font.bold = None, False
    caption.paragraph_format.space_after = Pt(4)
    caption.paragraph_format.keep_with_next = True
    for index, table in enumerate(tables):
        _section(document, index, wide=_width(table) >= WIDE)
        _add(document, table)
    properties = document.core_properties
    properties.title, properties.author, properties.comments = (
        title,
        "haemex",
        "Research software, not a medical device.",
    )
    properties.language = "en-GB"
    properties.last_modified_by = "haemex"
    properties.created = properties.modified = EPOCH
    raw = io.BytesIO()
    document.save(raw)
    return _undated(raw.getvalue())


def _speak(style, language):
    """Set the language of a style, for the spelling checker."""
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    spoken = OxmlElement("w:lang")
    spoken.set(qn("w:val"), language)
    style.element.get_or_add_rPr().append(spoken)


def _width(table):
    """Sum up the characters of the widest cell of every column; long sentences wrap, and count up to 30."""
    return sum(_column_widths(table))


def _column_widths(table):
    widths = [4] * table.columns
    for row in [*table.header, *table.body]:
        at = 0
        for cell in row:
            if cell.span == 1:
                widths[at] = max(widths[at], min(30, len(cell.text)))
            at += cell.span
    return [width + 2 for width in widths]  # room beside the text


def _section(document, index, wide):
    """Begin a page, upright or in landscape; the first section is there already."""
    from docx.enum.section import WD_ORIENT, WD_SECTION
    from docx.shared import Cm

    section = document.add_section(WD_SECTION.NEW_PAGE) if index else document.sections[0]
    section.orientation = WD_ORIENT.LANDSCAPE if wide else WD_ORIENT.PORTRAIT
    section.page_width, section.page_height = (Cm(side) for side in (reversed(PAGE_CM) if wide else PAGE_CM))
    for side in ("left_margin", "right_margin", "top_margin", "bottom_margin"):
        setattr(section, side, Cm(MARGIN_CM))


def _add(document, table):
    from docx.shared import Cm, Pt

    caption = document.add_paragraph(style="Caption")
    caption.add_run(f"{table.number}.").bold = True
    caption.add_run(f" {table.caption}")
    rows = [*table.header, *table.body]
    grid = document.add_table(rows=len(rows), cols=table.columns)
    grid.autofit = False
    _narrow_margins(grid)
    section = document.sections[-1]
    room = section.page_width - section.left_margin - section.right_margin
    widths = _column_widths(table)
    shares = [int(room * width / sum(widths)) for width in widths]
    for column, width in zip(grid.columns, shares, strict=True):
        column.width = width
    for index, (row, cells) in enumerate(zip(grid.rows, rows, strict=True)):
        top = index == 0
        bottom = index in (len(table.header) - 1, len(rows) - 1)
        _never_break(row, header=index < len(table.header))
        at = 0
        slots = row.cells
        for cell in cells:
            slot = slots[at] if cell.span == 1 else slots[at].merge(slots[at + cell.span - 1])
            slot.width = sum(shares[at : at + cell.span])
            paragraph = slot.paragraphs[0]
            paragraph.alignment = 2 if cell.right else 0
            paragraph.paragraph_format.left_indent = Cm(0.3) if cell.indent else None
            paragraph.paragraph_format.space_before = paragraph.paragraph_format.space_after = Pt(1.5)
            paragraph.add_run(cell.text).bold = cell.bold or None
            at += cell.span
        for slot in row._tr.tc_lst:
            _rules(slot, top=top, bottom=bottom)
    for note in table.footnotes:
        paragraph = document.add_paragraph(note)
        paragraph.paragraph_format.space_before = Pt(3)


def _narrow_margins(grid):
    """Leave 1 mm beside the text of a cell, half of what is usual."""
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    margins = OxmlElement("w:tblCellMar")
    for side in ("left", "right"):
        margin = OxmlElement(f"w:{side}")
        margin.set(qn("w:w"), "57")  # twentieths of a point
        margin.set(qn("w:type"), "dxa")
        margins.append(margin)
    grid._tbl.tblPr.find(qn("w:tblLayout")).addnext(margins)


def _never_break(row, header):
    """Keep a row on one page, and repeat it on every page when it belongs to the header."""
    from docx.oxml import OxmlElement

    properties = row._tr.get_or_add_trPr()
    for name in ("w:cantSplit", *(["w:tblHeader"] if header else [])):
        properties.append(OxmlElement(name))


def _rules(slot, top, bottom):
    """Draw the horizontal rules of a cell, 1 pt."""
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    if not (top or bottom):
        return
    borders = OxmlElement("w:tcBorders")
    for side, drawn in (("top", top), ("bottom", bottom)):
        if drawn:
            rule = OxmlElement(f"w:{side}")
            for name, value in (("val", "single"), ("sz", "8"), ("space", "0"), ("color", "000000")):
                rule.set(qn(f"w:{name}"), value)
            borders.append(rule)
    slot.get_or_add_tcPr().append(borders)


def _undated(content):
    """Pack a zip file anew with one date for all, in the same order."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name, EPOCH.timetuple()[:6])
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            new.writestr(entry, old.read(name))
    return out.getvalue()
