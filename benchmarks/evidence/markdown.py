"""The Markdown that the benchmarks write, as HTML: headings, paragraphs, lists, tables and images, and nothing else."""

from collections.abc import Iterator
from itertools import groupby

from benchmarks.evidence.page import inline, paragraph, table

__all__ = ["to_html"]


def to_html(text: str, *, image_folder: str) -> str:
    """HTML of a results page; its first heading is left out, and images are taken from `image_folder`."""
    blocks = [
        list(lines) for is_empty, lines in groupby(text.splitlines(), lambda line: not line.strip()) if not is_empty
    ]
    html = [part for block in blocks for part in _block(block, image_folder)]
    return "\n".join(html)


def _block(lines: list[str], image_folder: str) -> Iterator[str]:
    for kind, group in groupby(lines, _kind):
        together = list(group)
        if kind == "table":
            yield _table(together)
        elif kind == "list":
            yield "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in together) + "</ul>"
        elif kind == "heading":
            yield from (_heading(line) for line in together if not line.startswith("# "))
        elif kind == "image":
            yield from (_image(line, image_folder) for line in together)
        else:
            yield paragraph(" ".join(together))


def _kind(line: str) -> str:
    starts = {"|": "table", "- ": "list", "#": "heading", "![": "image"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text")


def _heading(line: str) -> str:
    level = min(6, len(line) - len(line.lstrip("#")) + 1)  # the page's own sections have level 2
    return f"<h{level}>{inline(line.lstrip('#').strip())}</h{level}>"


def _image(line: str, image_folder: str) -> str:
    label, _, rest = line.removeprefix("![").partition("](")
    name = rest.split(")")[0]
    return f'<img src="{image_folder}/{name}" alt="{inline(label)}" loading="lazy">'


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    is_ruled = len(rows) > 1 and all(set(cell) <= set("-: ") for cell in rows[1])
    return table(rows[0], rows[2:] if is_ruled else rows[1:])
