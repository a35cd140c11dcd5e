"""What people and models wrote, as HTML in which nothing can run and nothing can be loaded."""

from __future__ import annotations

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


@lru_cache(maxsize=512)  # a page is shown again after an error, and an item to each of its annotators
def markdown(text: str) -> Markup:
    """Markdown as safe HTML: tags in it are shown as text, images and unusual links as their address, single line breaks stay."""
    tokens = _parser.parse(text) if len(text) <= LONGEST else []
    html = _clean(_parser.renderer.render(tokens, _parser.options, {}))
    nothing_shown = not nh3.clean(html, tags=set()).strip()
    if nothing_shown or any(token.level >= DEEPEST for token in tokens):
        html = f"<p>{escape(text)}</p>".replace("\n", "<br>\n")
    return Markup(html)


def turns(prompt: Prompt) -> list[tuple[str, Markup]]:
    """Who says what in a prompt, as safe HTML; plain text is one turn of nobody (an empty role)."""
    if isinstance(prompt.text, str):
        return [("", markdown(prompt.text))]
    return [(message.role, markdown(message.content)) for message in prompt.text]


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=INLINE | BLOCKS,
        clean_content_tags=set(),
        attributes={"a": {"href"}, "ol": {"start"}},
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
    href, title = _address(tokens[opening]), _address(tokens[opening], "title")
    shown = "".join(token.content for token in tokens[opening + 1 : index])
    end = "</a>" if href.startswith(WEB) else ""
    where = f'{href} "{title}"' if title else href
    return end if where == shown else f'{end} <span class="address">({escape(where)})</span>'


def _image(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return f'<span class="address">[image: {escape(token.content)} ({escape(_address(token, "src"))})]</span>'


def _fence(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    language = tokens[index].info.strip()
    label = f'<span class="address">{escape(language)}</span>' if language else ""
    return f"{label}<pre><code>{escape(tokens[index].content)}</code></pre>\n"


def _address(token: Token, attribute: str = "href") -> str:
    return str(token.attrGet(attribute) or "")


# References are left as text: a response must not hold words that are not shown.
_parser = (
    MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST}).enable(["table", "strikethrough"]).disable("reference")
)
for _name, _rule in {"link_open": _link_open, "link_close": _link_close, "image": _image, "fence": _fence}.items():
    _parser.add_render_rule(_name, _rule)
