"""What people and models wrote, as HTML in which nothing can run and nothing can be loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markupsafe import Markup, escape

from heed.records import Prompt

INLINE = {"br", "strong", "em", "s", "a", "span", "code"}
BLOCKS = {"p", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"}
WEB = ("http://", "https://")
LONGEST = 30_000
"""Characters that are read as Markdown; a longer text is shown as it was written."""
DEEPEST = 50
"""Levels of quotes and lists, likewise."""
_LINE_END = re.compile(r"\r\n?|\n")
_AROUND_CELLS = re.compile(r"[\s|\\>]")
"""What a row of a table, which may stand in a quote, has beside the words of its cells."""


@lru_cache(maxsize=512)  # a page is shown again after an error, and an item to each of its annotators
def markdown(text: str) -> Markup:
    """Markdown as safe HTML: tags in it are shown as text, images and unusual links as their address, single line breaks stay."""
    tokens = _parser.parse(text) if len(text) <= LONGEST else []
    html = _clean(_parser.renderer.render(tokens, _parser.options, {}))
    nothing_shown = not nh3.clean(html, tags=set()).strip()
    if nothing_shown or any(token.level >= DEEPEST for token in tokens) or _cells_cut(tokens, text):
        html = f"<p>{escape(text)}</p>".replace("\n", "<br>\n")
    return Markup(html)


def turns(prompt: Prompt) -> list[tuple[str, Markup]]:
    """Who says what in a prompt, as safe HTML; plain text is one turn of nobody (an empty role)."""
    if isinstance(prompt.text, str):
        return [("", markdown(prompt.text))]
    return [(message.role, markdown(message.content)) for message in prompt.text]


def _cells_cut(tokens: Sequence[Token], text: str) -> bool:
    """Whether a row of a table says more than its cells show: the parser drops those beyond its header's."""
    lines, shown = _LINE_END.split(text), defaultdict[int, str](str)
    for token in tokens:
        if token.type == "inline" and token.map:
            shown[token.map[0]] += token.content
    rows = [row for token in tokens if token.type == "tbody_open" and token.map for row in range(*token.map)]
    return any(_AROUND_CELLS.sub("", lines[row]) != _AROUND_CELLS.sub("", shown[row]) for row in rows)


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=INLINE | BLOCKS,
        clean_content_tags=set(),
        attributes={"a": {"href"}, "ol": {"start"}, "li": {"value"}},
        allowed_classes={"span": {"address"}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https"},
        url_relative="deny",
    )


def _link_open(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    href = _address(tokens[index])
    return f'<a href="{escape(href)}">' if href.startswith(WEB) else ""


def _link_close(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    opening = next(i for i in range(index, -1, -1) if tokens[i].type == "link_open")  # links hold no links
    where = _where(tokens[opening], "href")
    shown = "".join(token.content for token in tokens[opening + 1 : index])
    end = "</a>" if _address(tokens[opening]).startswith(WEB) else ""
    return end if where == shown else f'{end} <span class="address">({escape(where)})</span>'


def _image(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return f'<span class="address">[image: {escape(token.content)} ({escape(_where(token, "src"))})]</span>'


def _fence(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    language = tokens[index].info.strip()
    label = f'<span class="address">{escape(language)}</span>' if language else ""
    return f"{label}<pre><code>{escape(tokens[index].content)}</code></pre>\n"


def _item(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    number = tokens[index].info  # as written: a list counts on from its first item
    return f'<li value="{int(number)}">' if number else "<li>"


def _where(token: Token, attribute: str) -> str:
    """Where a link or an image leads, with the title that browsers would show on hovering alone."""
    address, title = _address(token, attribute), _address(token, "title")
    return f'{address} "{title}"' if title else address


def _address(token: Token, attribute: str = "href") -> str:
    return str(token.attrGet(attribute) or "")


class _Parser(MarkdownIt):
    """Reads addresses as they are written: percent signs in place of letters would hide what they say."""

    def normalizeLink(self, url: str) -> str:  # noqa: N802
        return url

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802
        return link


# A response must not hold words that are not shown. So references are left as text, and the parser, which drops what is nested deeper
# than its limit, goes one level beyond `DEEPEST`.
_parser = _Parser("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST + 1}).enable(["table", "strikethrough"])
_parser.disable("reference")
_rules = {"link_open": _link_open, "link_close": _link_close, "image": _image, "fence": _fence, "list_item_open": _item}
for _name, _rule in _rules.items():
    _parser.add_render_rule(_name, _rule)
