"""Where a page says "chapter 3", or "chapters 8 and 9", the reader can go there; in a notebook it is plain text."""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

MENTION = re.compile(r"\b(chapters\s+)(\d+(?:(?:,|,?\s+and|,?\s+or|\s+to)\s+\d+)*)|\bchapter\s+\d+", re.IGNORECASE)
PLAIN = nodes.reference, pending_xref, nodes.literal, nodes.literal_block, nodes.title, nodes.raw, nodes.math


def links(text: str) -> Iterator[tuple[str, int | None]]:
    """A text in pieces, each with the chapter that it should lead to.

    Example:
        >>> list(links("In chapter 3, not in chapters 8 and 9."))
        [('In ', None), ('chapter 3', 3), (', not in ', None), ('chapters ', None), ('8', 8), (' and ', None), ('9', 9),
         ('.', None)]
    """
    end = 0
    for mention in MENTION.finditer(text):
        yield text[end : mention.start()], None
        if mention[1]:
            yield mention[1], None
            for piece in re.split(r"(\d+)", mention[2]):
                yield piece, int(piece) if piece.isdigit() else None
        else:
            yield mention[0], int(mention[0].split()[1])
        end = mention.end()
    yield text[end:], None


def chapters(env: BuildEnvironment) -> dict[int, str]:
    """The pages of the chapters by number."""
    pages = (re.fullmatch(r"book/chapters/(\d\d)_\w+", page) for page in env.found_docs)
    return {int(page[1]): page[0] for page in pages if page}


def plain(text: nodes.Text) -> bool:
    """Whether this text is a link already, or code, or a heading."""
    position = text.parent.index(text)
    if position > 0 and isinstance(text.parent[position - 1], nodes.raw):  # an <a> in HTML
        return True
    ancestor = text.parent
    while ancestor is not None and not isinstance(ancestor, PLAIN):
        ancestor = ancestor.parent
    return ancestor is not None


class Mentions(SphinxTransform):
    default_priority = 900

    def apply(self) -> None:
        here, pages = self.env.docname, chapters(self.env)
        for text in [text for text in self.document.findall(nodes.Text) if MENTION.search(text) and not plain(text)]:
            pieces: list[nodes.Node] = []
            for words, number in links(text):
                page = pages.get(number, here)
                if page == here:
                    pieces.append(nodes.Text(words))
                else:
                    link = pending_xref(
                        "", refdomain="std", reftype="doc", refdoc=here, reftarget=f"/{page}", refexplicit=True
                    )
                    link += nodes.inline(words, words, classes=["xref", "std", "std-doc"])
                    pieces.append(link)
            text.parent.replace(text, pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(Mentions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
