"""Token ids becoming text as they are sampled: stop strings, and pieces to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

Decode = Callable[[Sequence[int]], str]

MARGIN = 4
"""Tokens read before those that can hold a stop string, so that it does not begin within a character."""


class StopStrings:
    """Watches the text of many rows for the strings that end a response, however tokens split them."""

    def __init__(self, stop: Sequence[str], decode: Decode) -> None:
        self.stop, self.decode = stop, decode
        # Every token that is text brings a byte or more.
        self.window = max(len(text.encode()) for text in stop) + MARGIN
        self.ids: defaultdict[int, list[int]] = defaultdict(list)

    def ended(self, rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Take the newest token of each row and say whose text holds a stop string now."""
        return [self._take(self.ids[row], token) for row, token in zip(rows, tokens, strict=True)]

    def _take(self, ids: list[int], token: int) -> bool:
        ids.append(token)
        # The end of a text may read otherwise without its beginning: the whole text decides, where the end gives reason to look.
        return all(find_stop(self.decode(part), self.stop) >= 0 for part in (ids[-self.window :], ids))


def find_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins, or -1."""
    return min((found for found in map(text.find, stop) if found >= 0), default=-1)


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    found = find_stop(text, stop)
    return text if found < 0 else text[:found]


def text_pieces(tokens: Iterable[int], decode: Decode, is_byte: Callable[[int], bool]) -> Iterator[str]:
    """Text as its tokens arrive, holding back a character until its last byte is there; the pieces join to `decode(tokens)`.

    Tokens of one byte each (`is_byte`) wait for the end of their run, which reads as text as a whole or not at all.
    """
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        if is_byte(token):
            continue
        text = decode(ids)
        whole = text.rstrip("\ufffd")
        if whole.startswith(shown) and len(whole) > len(shown):
            yield whole[len(shown) :]
            shown = whole
    text = decode(ids)
    if len(text) > len(shown):
        yield text[len(shown) :]


def pieces_until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces before the first of the stop strings, holding back what may be the beginning of one; they join to `until_stop`."""
    held = ""
    for piece in pieces:
        held += piece
        if find_stop(held, stop) >= 0:
            break
        keep = max((size for text in stop for size in range(1, len(text)) if held.endswith(text[:size])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if rest := until_stop(held, stop):
        yield rest
