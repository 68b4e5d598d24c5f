"""Pieces of a static HTML page: sections, tables, figures, and the frame around them. No script, nothing fetched."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Section", "details", "figure", "link", "page", "paragraph", "table"]

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2430; --soft: #5b6675; --line: #d5dae2; --back: #ffffff; --shade: #f3f5f8;
  --c0: #1f5fbf; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce;
  --c4: #b45309; --c5: #0e7490; --c6: #be185d; --c7: #4d5b6b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ee; --soft: #9aa6b5; --line: #37414f; --back: #12161c; --shade: #1b212a;
    --c0: #7fb0ff; --c1: #ff9d6b; --c2: #6fd08c; --c3: #cf9bff;
    --c4: #f0b860; --c5: #66cbe0; --c6: #ff8fc0; --c7: #b5c0cd;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem;
  background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line); }
a { color: var(--c0); }
code { font-size: .88em; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--shade); }
td.n { text-align: right; white-space: nowrap; }
td.met::before { content: "\\2713\\00a0"; color: var(--c2); }
td.missed::before { content: "\\2717\\00a0"; color: var(--c1); }
figure { margin: 1rem 0; }
figcaption, .note { color: var(--soft); font-size: .9rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
img { max-width: 100%; }
svg { max-width: 44rem; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--soft); stroke-width: 1.2; }
svg .limit { stroke: var(--c1); stroke-dasharray: 4 3; }
svg polyline { fill: none; stroke-width: 1.8; }
svg line.c0 { stroke-width: 2; }
svg .single { fill: var(--soft); opacity: .45; }
""" + "\n".join(
    f"svg polyline.c{n}, svg line.c{n} {{ stroke: var(--c{n}); }}\nsvg circle.c{n} {{ fill: var(--c{n}); }}"
    for n in range(8)
)


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; `anchor` is its address within the page."""

    anchor: str
    title: str
    body: str


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """A complete document with a table of contents."""
    contents = " ".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "\n".join(
        f'<section id="{section.anchor}">\n<h2>{escape(section.title)}</h2>\n{section.body}\n</section>'
        for section in sections
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{introduction}\n<nav>{contents}</nav>\n"
        f"{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Sequence[str]]]) -> str:
    """A table of texts; a cell may be (text, class), and cells that look like numbers stand at the right."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _cell(cell: Sequence[str]) -> str:
    text, kind = (cell, "n" if cell[:1] in tuple("0123456789+-<") else "") if isinstance(cell, str) else cell
    return f'<td class="{kind}">{inline(text)}</td>' if kind else f"<td>{inline(text)}</td>"


def inline(text: str) -> str:
    """Escaped text in which `code` and [links](address) are marked as in Markdown."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else _links(part) for n, part in enumerate(parts))


def _links(text: str) -> str:
    before, opening, rest = text.partition("](")
    if not opening or "[" not in before or ")" not in rest:
        return text
    lead, _, label = before.rpartition("[")
    address, _, after = rest.partition(")")
    return f"{lead}{link(label, address)}{_links(after)}"


def link(text: str, address: str) -> str:
    return f'<a href="{escape(address)}">{text}</a>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text with Markdown's code and links."""
    return f'<p class="{kind}">{inline(text)}</p>' if kind else f"<p>{inline(text)}</p>"


def figure(svg: str, caption: str) -> str:
    """A plot and what it shows."""
    return f"<figure>\n{svg}\n<figcaption>{inline(caption)}</figcaption>\n</figure>"


def details(summary: str, body: str) -> str:
    """Something that is folded away until it is asked for."""
    return f"<details>\n<summary>{inline(summary)}</summary>\n{body}\n</details>"
