"""Guarantees of documents: what is kept, what never becomes text, what is refused and why."""

import pytest
from fpdf import FPDF
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data.unreadable import Unreadable
from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import documents, pdf

HTML = """<html><head><title>T</title><style>p {color: red}</style></head><body><main>
<h1>Tables</h1><p>First <b>bold</b>と text.</p><script>steal()</script>
<h2>Insert</h2><ul><li>Choose <i>Table</i>.</li><li>Click OK.</li></ul>
<table><tr><th>Key</th><th>Effect</th></tr><tr><td>Ctrl|B</td><td>Bold</td></tr></table>
<h3>Code</h3><pre>&lt;script&gt;
  run()</pre><h2>Delete</h2><p>Press Del.</p></main></body></html>"""
MARKDOWN = """---
layout: page
---
# Tables

First **bold**と text.

<script>steal()</script>

## Insert

- Choose *Table*.
- Click OK.

| Key | Effect |
|---|---|
| Ctrl\\|B | Bold |

### Code

```
<script>
  run()
```

## Delete

Press Del.
"""
RST = """Tables
======

First **bold**\\ と text.

.. raw:: html

   <script>steal()</script>

.. include:: /etc/passwd

Insert
------

- Choose *Table*.
- Click OK.

====== ======
Key    Effect
====== ======
Ctrl|B Bold
====== ======

Code
~~~~

::

    <script>
      run()

Delete
------

Press Del.
"""


def read(name, text):
    return documents.read_document(name, text.encode())


@pytest.mark.parametrize(("name", "source"), [("a.html", HTML), ("a.md", MARKDOWN), ("a.rst", RST)])
def test_three_formats_of_one_document_give_the_same_paragraphs(name, source):
    document = read(name, source)
    assert document.title == "Tables"
    assert [(p.headings[1:], p.kind, p.text) for p in document.paragraphs] == [
        ((), "text", "First boldと text."),
        (("Insert",), "list", "Choose Table."),
        (("Insert",), "list", "Click OK."),
        (("Insert",), "table", "Key | Effect\nCtrl¦B | Bold"),
        (("Insert", "Code"), "code", "<script>\n  run()"),
        (("Delete",), "text", "Press Del."),
    ]


def test_directives_and_roles_of_sphinx_keep_their_text():
    source = (
        "Dialogs\n=======\n\n.. function:: askfloat(title, **kw)\n   :noindex:\n\n   Asks for "
        "a :class:`float`, see :func:`~builtins.input` and :ref:`the guide <guide>`.\n\n"
        ".. versionadded:: 3.2\n   The *kw*.\n\n.. index:: hidden\n\n.. code-block:: python\n"
        "   :emphasize-lines: 1\n\n   ask()\n"
    )
    texts = [paragraph.text for paragraph in read("a.rst", source).paragraphs]
    assert "Asks for a float, see input and the guide." in texts
    assert any("askfloat(title, **kw)" in text for text in texts)
    assert any("The kw." in text for text in texts)
    assert "ask()" in texts
    assert not any("hidden" in text for text in texts)


def test_no_file_is_read_that_a_document_asks_for(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret\n")
    source = f"T\n=\n\nText.\n\n.. include:: {secret}\n\n.. csv-table::\n   :file: {secret}\n\n"
    source += f".. literalinclude:: {secret}\n\n.. raw:: html\n   :file: {secret}\n"
    assert "secret" not in " ".join(p.text for p in read("a.rst", source).paragraphs)


def test_control_characters_and_turned_text_do_not_stay():
    document = read("a.txt", "red \x1b[31m alert\u202e abc\x07\x9b1m, family 👨\u200d👩\u200d👧")
    assert document.paragraphs[0].text == "red [31m alert abc1m, family 👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    "name",
    ["", "/etc/a.md", "../a.md", "a/../b.md", "a//b.md", "./a.md", "a\\b.md", "C:a.md", "a\0.md",
     "a\n.md", "a\u202ecod.md", "x" * 1100 + ".md"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(Unreadable, match="bad name"):
        documents.read_document(name, b"# T\n\ntext")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.docx", b"x", "unknown kind"),
        ("a", b"x", "unknown kind"),
        ("a.txt", b" \n\t\n ", "no text"),
        ("a.html", b"<html><body><nav>menu</nav></body></html>", "no text"),
        ("a.pdf", b"no PDF at all", "broken PDF"),
        ("a.pdf", b"%PDF-1.7\n1 0 obj\n<<", "broken PDF"),
        ("a.pdf", b"", "broken PDF"),
        ("a.html", b"<div>" * 5000 + b"x" + b"</div>" * 5000, "page too complex"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(name, data, reason):
    with pytest.raises(Unreadable, match=reason):
        documents.read_document(name, data)


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_BYTES", 100)
    (tmp_path / "long.md").write_text("word " * 50)
    (tmp_path / "short.md").write_text("word")
    folder = documents.read_folder(tmp_path)
    assert [document.name for document in folder.documents] == ["short.md"]
    assert "at most 100" in folder.unreadable["long.md"]


def test_a_folder_names_what_it_left_out_and_follows_no_link_out_of_it(tmp_path):
    inside, outside = tmp_path / "docs", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.md").write_text("secret")
    (inside / "sub" / "b.md").write_text("# B\n\ntext")
    (inside / "a.txt").write_text("text")
    (inside / ".hidden.md").write_text("hidden")
    (inside / "c.pdf").write_bytes(b"broken")
    (inside / "d.png").write_bytes(b"no document")
    (inside / "link.md").symlink_to(outside / "secret.md")
    (inside / "gone.md").symlink_to(inside / "nothing.md")
    folder = documents.read_folder(inside)
    assert [document.name for document in folder.documents] == ["a.txt", "sub/b.md"]
    assert set(folder.unreadable) == {"c.pdf", "link.md", "gone.md"}
    assert "leads out" in folder.unreadable["link.md"]
    (inside / "a.txt").unlink()
    (inside / "sub" / "b.md").unlink()
    with pytest.raises(LabError, match=r"no document that can be read(.|\n)*c.pdf: broken PDF"):
        documents.read_folder(inside)


def made_pdf(**encryption) -> bytes:
    page = FPDF()
    page.add_page()
    page.set_font("helvetica", style="B", size=20)
    page.cell(text="User guide", new_x="LMARGIN", new_y="NEXT")
    page.set_font("helvetica", style="B", size=14)
    page.cell(text="Shortcuts", new_x="LMARGIN", new_y="NEXT")
    page.set_font("helvetica", size=11)
    page.multi_cell(w=0, text="These keys format text. " * 8, new_x="LMARGIN", new_y="NEXT")
    page.ln(6)
    with page.table() as table:
        for row in (("Key", "Effect"), ("Ctrl B", "Bold"), ("Ctrl I", "Italic")):
            cells = table.row()
            for text in row:
                cells.cell(text)
    if encryption:
        page.set_encryption(**encryption)
    return bytes(page.output())


WHOLE_PDF = made_pdf()


def test_a_pdf_keeps_headings_paragraphs_and_tables():
    document = documents.read_document("guide.pdf", made_pdf())
    assert document.title == "User guide"
    text, table = document.paragraphs
    assert text.headings == table.headings == ("User guide", "Shortcuts")
    assert text.text == ("These keys format text. " * 8).strip()
    assert (table.kind, table.text) == ("table", "Key | Effect\nCtrl B | Bold\nCtrl I | Italic")


def test_an_encrypted_pdf_is_refused_unless_anyone_may_open_it():
    with pytest.raises(Unreadable, match="encrypted"):
        documents.read_document("a.pdf", made_pdf(owner_password="o", user_password="u"))
    assert documents.read_document("a.pdf", made_pdf(owner_password="o")).title == "User guide"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_pdf_is_read_or_refused(data):
    whole = WHOLE_PDF
    start = data.draw(st.integers(0, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[start + 40 :]
    try:  # in this process, which a fault other than Unreadable would end
        assert pdf.parse(damaged)
    except Unreadable as error:
        assert len(error.args) == 2


def test_a_pdf_that_takes_all_time_or_memory_takes_only_its_own_process(monkeypatch):
    monkeypatch.setattr(pdf, "MAX_SECONDS", 0.01)
    with pytest.raises(Unreadable, match="too slow"):
        pdf.read_pdf(made_pdf())
    monkeypatch.setattr(pdf, "MAX_SECONDS", 60)
    monkeypatch.setattr(pdf.sys, "executable", "false")
    with pytest.raises(Unreadable, match="broken PDF"):
        pdf.read_pdf(made_pdf())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["a.html", "a.md", "a.rst", "a.txt"]), st.text(max_size=300))
def test_any_text_is_read_or_refused(name, text):
    try:
        document = documents.read_document(name, text.encode())
    except Unreadable as error:
        assert len(error.args) == 2
        return
    for paragraph in document.paragraphs:
        assert paragraph.text.strip()
        assert "\x1b" not in paragraph.text
