"""Turns text files as people have them into lines, and CSV into rows: encoding, separator and header are found in it.

No row is lost: missing cells are unknown, surplus text belongs to the last column of texts, and a quote that is never
closed is a character. pyarrow reads a regular file, nine times faster; from the first row that it refuses on, and where
quotes are odd or span lines, the careful reader goes on. `issues` counts what was odd.
"""

import logging
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from io import TextIOWrapper
from itertools import chain, count, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from charset_normalizer import from_bytes

from product_classificator.catalog.cells import Table
from product_classificator.catalog.columns import guess, spelling
from product_classificator.errors import DataError
from product_classificator.remote.paths import copied

logger = logging.getLogger(__name__)

MAX_LINE_CHARS, MAX_QUOTED_CHARS = 1 << 24, 1 << 20
"""Longer lines are cut; a quote that is not closed within so many characters is a character."""
_SAMPLE_LINES, _BLOCK = 200, 1 << 20
_RUSSIAN_ENCODINGS = ["cp1251", "koi8_r", "cp866"]


class TextFile:
    """The lines of a text file, compressed or not; its encoding is found from all of its bytes unless it is named."""

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError as error:
            raise DataError(f"encoding must be one that Python knows, like cp1251, got {encoding!r}") from error
        self.path, self.encoding = path, encoding or _find_encoding(path)
        if re.sub("[-_]", "", self.encoding.lower()) == "utf8":
            self.encoding = "utf-8-sig"

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of whole lines; the last block may end without one."""
        rest = b""
        with _opened(self.path) as file:
            while block := file.read(_BLOCK):
                end = block.rfind(b"\n") + 1
                yield rest + block[:end] if end else b""
                rest = block[end:] if end else rest + block
        yield rest

    def text(self) -> str:
        """Return the whole text, without NUL characters."""
        with _opened(self.path) as file, TextIOWrapper(file, self.encoding, "replace") as text:
            return text.read().replace("\0", "")

    def lines(self, issues: Counter[str]) -> Iterator[str]:
        """Yield the lines without their ends; wrong bytes become U+FFFD, and NUL characters are left out."""
        rest = ""
        with _opened(self.path) as file, TextIOWrapper(file, self.encoding, "replace") as text:
            while block := text.read(_BLOCK):
                issues["wrong_characters"] += block.count("\ufffd")
                issues["nul_characters"] += block.count("\0")
                *lines, rest = (rest + block.replace("\0", "")).split("\n")
                if len(rest) > MAX_LINE_CHARS:
                    issues["lines_cut"], rest = issues["lines_cut"] + 1, rest[:MAX_LINE_CHARS]
                yield from lines
        yield rest


def _opened(path: Path) -> pa.NativeFile:
    """Open a file that its first bytes show to be compressed, or not: names may be wrong."""
    path = copied(path)  # text is read several times
    with path.open("rb") as file:
        head = file.read(4)
    is_bz2 = re.match(rb"BZh[1-9]", head) and ".bz2" in path.name.lower()  # a text may begin so
    marks = {"gzip": head[:2] == b"\x1f\x8b", "zstd": head == b"\x28\xb5\x2f\xfd", "bz2": is_bz2}
    return pa.input_stream(path, compression=next((kind for kind, is_there in marks.items() if is_there), None))


def _find_encoding(path: Path) -> str:
    """Return the encoding of a file: UTF-8 if most of what is not ASCII is valid, else what its letters suggest.

    UTF-16 where a byte order mark says so, or most line feeds have a NUL byte on the same side.
    """
    with _opened(path) as file:
        head = file.read(_BLOCK)
    if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    for encoding, dtype in (("utf-16-le", "<u2"), ("utf-16-be", ">u2")):
        if np.count_nonzero(np.frombuffer(head, dtype, len(head) // 2) == ord("\n")) * 2 > head.count(b"\n"):
            return encoding
    valid, wrong, sample = 0, 0, b""
    for block in TextFile(path, "latin-1").blocks():
        text = block.decode("utf-8", "replace")
        replaced = text.count("\ufffd") - block.count(b"\xef\xbf\xbd")
        wrong += replaced
        valid += len(block) - len(text) - replaced
        if replaced:  # a little of every block, so that the whole file decides
            sample += b"\n".join(line for line in block.split(b"\n") if not line.isascii())[: 1 << 14]
    if wrong <= valid:
        return "utf-8-sig"
    # Latin letters with accents are alone, or next to plain ones; Cyrillic words are neither.
    runs = re.findall(rb"([a-zA-Z]?)([\x80-\xff]+)([a-zA-Z]?)", sample)
    is_latin = sum(len(run) == 1 or before + after != b"" for before, run, after in runs) * 2 > len(runs)
    best = None if is_latin else from_bytes(sample, cp_isolation=_RUSSIAN_ENCODINGS).best()
    encoding = "cp1252" if is_latin else best.encoding if best else "cp1251"
    logger.warning("%s is not UTF-8: read as %s; encoding (--encoding) names another", path, encoding)
    return encoding


class CsvTable(Table):
    """CSV with any of the usual separators. Lines above the header are skipped, names are trimmed."""

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self._file = TextFile(path, encoding)
        self.encoding = self._file.encoding
        sample = list(islice(self._file.lines(Counter()), _SAMPLE_LINES))
        named = re.fullmatch(r'"?sep=(.)"?\s*', sample[0])
        self._skipped_lines = 1 if named else 0
        marks = named[1] if named else ",;\t|"
        samples = {mark: list(_split_lines(sample[self._skipped_lines :], mark)) for mark in marks}
        self._delimiter, rows = max(samples.items(), key=lambda item: _regularity(item[1]))
        if not rows:
            raise DataError(f"{path} is empty: a CSV table needs a header")
        header = header_row(rows)
        self._skipped_lines += rows[header][0]
        if header:
            logger.warning("%s: the header is taken to be %s; lines above it are skipped", path, rows[header][1])
        super().__init__(str(path), rows[header][1])
        self._header, self._header_line = rows[header][1], sample[self._skipped_lines - 1]
        self._text_column = self._find_text_column([cells for _, cells in rows[header + 1 :]])

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[pa.Array]]:
        row = 0
        if self._is_regular:
            try:
                for batch in self._quick_batches([str(index) for index in indices], size):
                    yield batch.columns
                    row += batch.num_rows
                return
            except (pa.ArrowException, UnicodeDecodeError):
                logger.info("%s: row %d is odd: read on with the careful reader", self.name, row + 1)
                self._is_regular = False
        rows = islice(self._rows(issues), row, None)
        while chunk := list(islice(rows, size)):
            yield [pa.array([cells[index] or None for cells in chunk], pa.string()) for index in indices]

    def _quick_batches(self, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        read = pa.csv.ReadOptions(
            use_threads=False,
            block_size=8 << 20,
            encoding=self._file.encoding.replace("-sig", ""),
            column_names=[str(index) for index in range(len(self.columns))],
            skip_rows=self._skipped_lines,
        )
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=list(dict.fromkeys(names)),
            strings_can_be_null=True,
            null_values=[""],
        )
        with _opened(self._file.path) as file:
            for block in pa.csv.open_csv(file, read, pa.csv.ParseOptions(delimiter=self._delimiter), convert):
                for start in range(0, block.num_rows, size):
                    yield block.slice(start, size).select(names)

    @cached_property
    def _is_regular(self) -> bool:
        """Whether every quoted cell ends on its line, before a separator, no byte is wrong, and the header is once."""
        mark = re.escape(self._delimiter).encode()
        # An opening quote whose cell goes on in the next line, or after its closing quote; a blank before a quote.
        cell = rb'(?<=[\n%b]")(?:[^"\n]|"")*+(?:\n|\Z|"(?![\n%b]|\Z))'
        odd = re.compile(rb'"(?:%b|(?<=[\n%b ] ")(?!"))' % (cell % (mark, mark), mark))
        is_wide = "16" in self._file.encoding or "32" in self._file.encoding
        if len(self.columns) == 1 or not self._delimiter.isascii() or is_wide:
            return False
        header, n_headers = b"\n" + self._header_line.encode(self.encoding.replace("-sig", ""), "replace"), 0
        for block in self._file.blocks():
            lines = b"\n" + block.replace(b"\r\n", b"\n").replace(BOM_UTF8, b"")
            n_headers += lines.count(header)
            with suppress(UnicodeDecodeError):
                block.decode(self._file.encoding)
                if n_headers < 2 and b"\0" not in block and b"\r" not in lines and not odd.search(lines):
                    continue
            return False
        return True

    def _rows(self, issues: Counter[str]) -> Iterator[list[str]]:
        width, place = len(self.columns), self._text_column
        lines = (line.lstrip("\ufeff") for line in islice(self._file.lines(issues), self._skipped_lines, None))
        for _, cells in _split_lines(lines, self._delimiter, width, issues):
            if len(cells) < width:
                issues["rows_with_missing_cells"] += any(self.columns[len(cells) :])
                cells += [""] * (width - len(cells))
            while len(cells) > width and not cells[-1].strip():
                cells.pop()
            if cells == self._header:  # of a file that was appended
                issues["repeated_headers"] += 1
                continue
            if surplus := len(cells) - width:
                issues["rows_with_surplus_cells"] += 1
                cells[place : place + surplus + 1] = [self._delimiter.join(cells[place : place + surplus + 1])]
            yield cells

    def _find_text_column(self, rows: Sequence[Sequence[str]]) -> int:
        """Return the last column with a name of texts or mostly several words, to which surplus cells belong."""
        regular = [row for row in rows if len(row) == len(self.columns)]
        for place in reversed(range(len(self.columns))):
            words = sum(" " in row[place].strip() for row in regular)
            if guess([self.columns[place]], "text") or (regular and words * 2 > len(regular)):
                return place
        return len(self.columns) - 1


def _regularity(rows: Sequence[tuple[int, Sequence[str]]]) -> tuple[bool, int, int]:
    """Return whether a row has a usual name among others, how many have the commonest width above 1, and that width."""
    has_names = any(len(cells) > 1 and guess(cells, "id", "text") for _, cells in rows[:20])
    (width, rows_of_it), *_ = Counter(len(cells) for _, cells in rows).most_common(1) or [(1, 0)]
    return (has_names, rows_of_it, width) if width > 1 else (has_names, 0, 1)


def header_row(rows: Sequence[tuple[int, Sequence[str]]]) -> int:
    """Return the first row that is no title: it has a usual name, or more than half as many names as most rows have."""
    has_names, _, width = _regularity(rows)
    is_list = width == 1 and not has_names
    for number, (_, cells) in enumerate(rows):
        names = sum(map(bool, map(spelling, cells)))
        if names > max(1, width // 2) or is_list or len(cells) == width == 2 or guess(cells, "id", "text"):
            return number
    return 0


def _split_lines(
    lines: Iterable[str], delimiter: str, width: int = 0, issues: Counter[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row, after how many lines; a quote that does not fit is a character of its line."""
    lines, ahead, number = iter(lines), deque[str](), 0
    while ahead or (ahead := deque(islice(lines, 1))):
        line, taken = ahead[0], 1
        cells = line.split(delimiter)
        if '"' in line:
            row = _quoted_row(ahead, lines, delimiter, width)
            if row is None and '\\"' in line:
                row = _quoted_row(ahead, lines, delimiter, width, undo_backslashes=True)
            if row and row[1] > 1 and len(row[0]) < width == len(cells):
                row = None  # the first line is a row of its own
            if issues is not None:
                issues["rows_with_stray_quotes"] += row is None
                # Valid, but a lone quote that opens a cell of the next row would read the same.
                is_doubtful = row and len(cells) == width and any("\n" in c and c.endswith(delimiter) for c in row[0])
                issues["rows_that_a_quote_may_have_joined"] += bool(is_doubtful)
            cells, taken = row or ([cell if (plain := _plain(cell)) is None else plain for cell in cells], 1)
        for _ in range(taken):
            ahead.popleft()
        number += taken
        if line.strip().strip("\x1a"):  # blank lines are no rows, nor is the mark of DOS at the end
            yield number, cells


def _quoted_row(
    ahead: deque[str], lines: Iterator[str], delimiter: str, width: int, *, undo_backslashes: bool = False
) -> tuple[list[str], int] | None:
    """Return the cells of the row that begins `ahead`, and its number of lines; nothing if a quote does not fit."""
    cells: list[str] = []
    parts: list[str] = []  # of the quoted cell that is open
    size = quotes = 0
    for number in count(1):
        if number > len(ahead):
            ahead.extend(islice(lines, 1))
        if number > len(ahead) or size > MAX_QUOTED_CHARS:
            break
        line = ahead[number - 1]
        size += len(line)
        pieces = (line.replace('\\"', '""') if undo_backslashes else line).split(delimiter)
        for joint, piece in zip(chain("\n", repeat(delimiter)), pieces, strict=False):
            if not parts and not (piece.startswith('"') or re.match(' +"(?!")', piece)):
                cells.append(piece)
                continue
            parts += [joint, piece] if parts else [piece.lstrip(" ")]
            quotes += piece.count('"')
            if quotes % 2 == 0:
                cell = _plain("".join(parts).rstrip(" "))
                # A second quote that opens a cell of its own closes nothing if what is between them are whole rows.
                # A lone quote closes, unless there is a whole row between.
                is_opening = number > 1 + (piece == '"') and joint == delimiter and piece.startswith('"')
                between = (line.count(delimiter) + 1 for line in islice(ahead, number - 1) if line.strip())
                if cell is None or (is_opening and min(between, default=width) >= width):
                    return None
                if number > 1 and _are_rows(list(islice(ahead, number)), delimiter, width, ends_early=piece == '"'):
                    return None
                cells.append(cell)
                parts = []
        if not parts:
            return cells, number
    return None


def _are_rows(lines: Sequence[str], delimiter: str, width: int, *, ends_early: bool) -> bool:
    """Return whether most lines are as wide as the header and begin like the first one, as `id9;` and `id10;` do."""
    rows = [line.split(delimiter) for line in lines if line.strip()]
    beginnings = [re.sub(r"\d+", "0", cells[0].strip('"')) for cells in rows]
    widths = [*map(len, rows[:-1]), width if ends_early else len(rows[-1])]
    alike = sum(one == beginnings[0] for one, n in zip(beginnings, widths, strict=True) if n == width)
    return alike * 2 > len(rows)


def _plain(cell: str) -> str | None:
    """Return what a quoted cell says, nothing if its quotes are not those of one."""
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if is_quoted else None
