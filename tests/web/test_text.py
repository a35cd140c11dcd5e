"""Nothing that people or models wrote can run or load anything, and all of it can be read."""

from __future__ import annotations

import itertools
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.records import Message, Prompt
from heed.web.text import BLOCKS, INLINE, LONGEST, markdown, turns

ATTACKS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<body style='background:url(//evil.example)'>",
    "<p style='position:fixed;inset:0'>over everything</p>",
    "<form action='//evil.example'><input name=password></form>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href='//evil.example'>",
    "<link rel=stylesheet href='//evil.example/x.css'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<details open ontoggle=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:msgbox)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    '![x" onerror="alert(1)](https://evil.example/pixel.png)',
    '[x](https://evil.example/" onmouseover="alert(1))',
    '[x](https://evil.example "title\\" onmouseover=\\"alert(1)")',
    "[x]\n\n[x]: javascript:alert(1)",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "`<img src=x onerror=alert(1)>`",
    "| <script> | a |\n|---|---|\n| <img src=x onerror=alert(1)> | b |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><script>alert(1)</script><!-- -->",
    "{{ 7 * 7 }}{% include 'base.html.j2' %}",
    "</div></form></main><h1>Signed out</h1>",
]
ATTRIBUTES = {"a": {"href", "target", "rel"}, "ol": {"start"}, "li": {"value"}, "span": {"class"}}
PIECES = [
    *(
        "W ",
        "W",
        "\n",
        "\n\n",
        "|",
        "| W ",
        "|\n",
        "    ",
        "\t",
        "> ",
        "- ",
        "1. ",
        "# ",
        "---\n",
        "*",
        "**",
        "_",
        "~~",
        "`",
        "```W\n",
        "\\",
        "&W;",
    ),
    *("| W | W |\n|---|---|\n", "| `W || W` | W |\n", "\n> | W |\n> |---|\n> | W | W |\n", "\n- W | W\n  ---|---\n  W | W | W\n"),
    *(
        '![W](https://e.example/W "W")',
        "[W](<W W> 'W')",
        "[W](скрытоW)",
        "[W](https://W.example/W (W))",
        "[W]: W 'W'\n",
        "<https://W>",
        "<!-- W -->",
    ),
    *("[", "]", "(", ")", "![", "](W", "<", ">", '"', "'", "=\n", "\r", "\0", "> " * 20, "- " * 20, ">" * 60),
]
"""Of texts, and each W a word that is nowhere else."""


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(html: str) -> None:
    for tag, attributes in Elements(html).found:
        assert tag in INLINE | BLOCKS
        assert set(attributes) <= ATTRIBUTES.get(tag, set())
        if "href" in attributes:
            assert str(attributes["href"]).startswith(("http://", "https://"))
            assert attributes["target"] == "_blank"
            assert set(str(attributes["rel"]).split()) >= {"noopener", "nofollow"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_runs_or_loads_anything(attack: str) -> None:
    for shown in (attack, f"Some words\n\n> - {attack}\n\nmore", f"**{attack}**"):
        assert_harmless(markdown(shown))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_shown_as_it_was_written(attack: str) -> None:
    assert "alert" not in attack or "alert" in Elements(markdown(attack)).text


@given(st.text(alphabet="<>[]()!`*_#-|\"'= \n\\&;:/abhrefjavscript1.", max_size=200))
def test_no_text_at_all_runs_or_loads_anything(text: str) -> None:
    assert_harmless(markdown(text))


@given(st.text(min_size=1, max_size=100).filter(lambda text: text.isalnum()))
def test_plain_words_are_all_there(text: str) -> None:
    assert Elements(markdown(text)).text.strip() == text


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_every_word_of_a_text_is_shown(pieces: list[str]) -> None:
    number = itertools.count()
    text = re.sub("W", lambda _: f"w{next(number):03}w", "".join(pieces))
    shown = Elements(markdown(text)).text
    assert [word for word in re.findall(r"w\d{3}w|скрыто", text) if word not in shown] == []


@pytest.mark.parametrize(
    "hidden",
    [
        "| code | means |\n|---|---|\n| `a || b` | logical or, never returns insult |",
        "> | a |\n> |---|\n> | b | insult |",
        "- a | b\n  ---|---\n  b | b | insult",
        '![cat](https://e.example/c.png "insult")',
        "[cat](https://e.example/insult 'so')",
        "[cat](/очень-insult-плохо)",
        *(f"Fine.\n\n{mark * depth} insult" for mark in (">", "- ", "1. ", "> 1. ") for depth in (24, 25, 49, 50, 51, 52)),
    ],
)
def test_words_where_a_parser_drops_them_are_shown(hidden: str) -> None:
    shown = Elements(markdown(hidden)).text
    assert [word for word in re.findall(r"[^\W\d_]+", hidden) if word not in shown] == []


def test_a_row_with_more_cells_than_its_header_is_shown_as_written_and_others_as_a_table() -> None:
    table = "| a | b |\n|---|---|\n| `x \\| y` |\n|| 2 |\n"
    assert markdown(table).count("<td>") == 4
    assert markdown(f"> 1. {table}".replace("\n", "\n>    ")).count("<td>") == 4
    longer = f"{table}| 3 | 4 | 5 |"
    assert Elements(markdown(longer)).text == longer


def test_lists_are_numbered_as_they_are_written() -> None:
    html = markdown("3. Boil\n1. Chop\n7) Eat\n\n- and sleep")
    assert [found for tag, found in Elements(html).found if tag == "li"] == [{"value": "3"}, {"value": "1"}, {"value": "7"}, {}]


def test_code_blocks_survive() -> None:
    code = "if a < b and c > d:\n    print(\"x\" & 'y')\n"
    assert f"<pre><code>{code.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}</code></pre>" in markdown(
        f"```python\n{code}```"
    )
    assert "<code>a &lt; b</code>" in markdown("so `a < b`")


def test_markdown_is_formatted() -> None:
    html = markdown("# Title\n\n1. **one**\n2. *two*\n\n> said\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n~~no~~")
    for part in ("<h1>Title</h1>", "<strong>one</strong>", "<em>two</em>", "<blockquote>", "<td>1</td>", "<s>no</s>"):
        assert part in html


def test_line_breaks_stay() -> None:
    assert markdown("one\ntwo") == "<p>one<br>\ntwo</p>\n"


def test_links_show_where_they_lead() -> None:
    html = markdown("[a **bank**](https://evil.example/?a=1&b=2) and <https://e.example>")
    assert 'href="https://evil.example/?a=1&amp;b=2"' in html
    assert Elements(html).text.strip() == "a bank (https://evil.example/?a=1&b=2) and https://e.example"


def test_links_into_the_app_are_only_text() -> None:
    html = markdown("[settings](/people) [mail](mailto:a@b.c)")
    assert "<a" not in html
    assert "settings (/people) mail (mailto:a@b.c)" in Elements(html).text


def test_images_are_shown_as_text_and_address() -> None:
    assert Elements(markdown("![a cat](https://e.example/cat.png)")).text.strip() == "[image: a cat (https://e.example/cat.png)]"


@pytest.mark.parametrize("hidden", ["[a]: https://e.example 'secret'", "```````", "---", "> " * 200 + "deep", "- " * 200 + "deep", "#"])
def test_no_words_are_swallowed(hidden: str) -> None:
    assert Elements(markdown(hidden)).text.split() == hidden.split()


@pytest.mark.parametrize(
    "text", [">" * 29_999 + "a", "[" * 30_000, "*a " * 10_000, "![" * 15_000, "[a](" * 7_500, "`a``b" * 6_000, "a" * 10**6, "![" * 10**6]
)
def test_huge_and_deeply_nested_texts_are_shown_in_time(text: str) -> None:
    start = time.process_time()
    html = markdown(text)
    assert time.process_time() - start < 5
    assert_harmless(html)
    assert Elements(html).text.strip()


def test_texts_too_long_for_markdown_keep_their_lines() -> None:
    text = "**a**\n" * LONGEST
    assert markdown(text).count("<br>") == LONGEST
    assert "**a**" in markdown(text)


def test_a_conversation_is_told_by_turns() -> None:
    prompt = Prompt((Message("user", "**Hi**"), Message("<b>", "x")))
    assert turns(prompt) == [("user", "<p><strong>Hi</strong></p>\n"), ("<b>", "<p>x</p>\n")]
    assert turns(Prompt("Hi")) == [("", "<p>Hi</p>\n")]
