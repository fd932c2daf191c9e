"""What a PDF says: as much of the format as Chromium's printing uses, so that no test needs a package for it."""

from __future__ import annotations

import re
import unicodedata
import zlib


def read_pdf(data: bytes) -> list[list[str]]:
    """Of every page the texts shown in one go, in its stream's order, ligatures as letters; those in transparency
    groups are left out.

    Letters beyond the sheet's printable part are not in the file. Fails where it is not of the form that Skia writes:
    one object after another, flat streams.
    """
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj\n(.*?)\nendobj", data, re.DOTALL)}
    fonts = {number: _letters(objects, body) for number, body in objects.items() if b"/Subtype /Type0" in body}
    contents = [
        int(found.group(1))
        for body in objects.values()
        if re.search(rb"/Type /Page\b", body) and (found := re.search(rb"/Contents (\d+) 0 R", body))
    ]
    assert contents, "no page in it"
    return [_texts(_stream(objects[number]), fonts) for number in contents]


def _stream(body: bytes) -> bytes:
    return zlib.decompress(body.split(b"stream\n", 1)[1])


def _letters(objects: dict[int, bytes], font: bytes) -> dict[int, str]:
    """A font's glyphs as characters, by its ToUnicode table."""
    table = re.search(rb"/ToUnicode (\d+) 0 R", font)
    assert table is not None, font[:200]
    found: dict[int, str] = {}
    for kind, part in re.findall(rb"beginbf(char|range)(.*?)endbf", _stream(objects[int(table.group(1))]), re.DOTALL):
        numbers = [bytes.fromhex(number.decode()) for number in re.findall(rb"<([0-9A-Fa-f]+)>", part)]
        if kind == b"char":
            for glyph, spelt in zip(numbers[::2], numbers[1::2], strict=True):
                found[int.from_bytes(glyph)] = spelt.decode("utf-16-be")
        else:
            for first, last, start in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
                for ahead in range(int.from_bytes(last) - int.from_bytes(first) + 1):
                    found[int.from_bytes(first) + ahead] = chr(int.from_bytes(start) + ahead)
    return found


def _texts(stream: bytes, fonts: dict[int, dict[int, str]]) -> list[str]:
    texts = []
    letters: dict[int, str] = {}
    for block in re.findall(rb"\bBT\n(.*?)\nET\b", stream, re.DOTALL):
        text = ""
        for font, spelt in re.findall(rb"/F(\d+) \S+ Tf|<([0-9A-Fa-f]+)> Tj", block):
            if font:
                letters = fonts.get(int(font), {})
            elif letters:
                text += "".join(letters[int(spelt[i : i + 4], 16)] for i in range(0, len(spelt), 4))
        texts.append(unicodedata.normalize("NFKC", text))
    return texts
