"""Stop strings and pieces of text against the text as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from heed.rollout.text import StopStrings, find_stop, pieces_until_stop, text_pieces, until_stop

TEXT = "naïve 日本 🙂!"


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def test_a_stream_never_splits_a_character() -> None:
    raw = TEXT.encode()
    pieces = list(text_pieces(raw, decode, lambda token: False))
    assert pieces == list(TEXT)
    cut = list(text_pieces(raw[:-2], decode, lambda token: False))
    assert "".join(cut) == decode(raw[:-2])
    assert [len(a) for a, _ in pairwise(cut)] == [1] * (len(cut) - 1)


def decode_with_fallback(ids: Sequence[int]) -> str:
    """Words from 256 on, and bytes, of which a run that is not UTF-8 reads as nothing but replacement characters."""
    text = ""
    for is_bytes, run in groupby(ids, lambda token: token < 256):
        own = list(run)
        try:
            text += bytes(own).decode() if is_bytes else "".join(f" w{token}" for token in own)
        except UnicodeDecodeError:
            text += "\ufffd" * len(own)
    return text


@given(st.lists(st.sampled_from([10, 0x80, 0xF0, *"🙂é".encode(), 300, 301]), max_size=12))
def test_a_stream_waits_for_the_end_of_a_run_of_bytes_and_no_longer(ids: list[int]) -> None:
    taken: list[int] = []

    def tokens() -> Iterator[int]:
        for token in ids:
            taken.append(token)
            yield token

    shown = ""
    for piece in text_pieces(tokens(), decode_with_fallback, lambda token: token < 256):
        shown += piece
        assert shown == decode_with_fallback(taken)
    assert shown == decode_with_fallback(ids)


def test_the_first_stop_string_counts() -> None:
    assert until_stop("one. two\n\nthree", ("\n\n", ". ")) == "one"
    assert until_stop("one two", ("\n\n", ". ")) == "one two"
    assert find_stop("abc", ("c", "bc")) == 1
    assert find_stop("abc", ()) == -1


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 3))
def test_pieces_join_to_the_text_before_the_stop(text: str, stop: list[str], size: int) -> None:
    ended: list[str] = []
    for start in range(0, len(text), size):  # a response ends with the piece that completes a stop string
        ended.append(text[start : start + size])
        if find_stop("".join(ended), stop) >= 0:
            break
    shown = list(pieces_until_stop(iter(ended), stop))
    assert "".join(shown) == until_stop("".join(ended), stop)
    assert all(shown)


def test_pieces_come_as_soon_as_they_cannot_belong_to_a_stop_string() -> None:
    assert list(pieces_until_stop(["a", "-", "b", "-", "-", "c"], ("--",))) == ["a", "-b"]
    assert list(pieces_until_stop(["a", "-", "b", "-"], ("--",))) == ["a", "-b", "-"]


@given(st.lists(st.sampled_from("é日ab"), max_size=12), st.sampled_from(["日", "éa", "ab日", "aa"]))
def test_a_row_ends_with_the_last_byte_of_a_stop_string(characters: list[str], stop: str) -> None:
    text = "naïve, naïve " + "".join(characters)
    raw = text.encode()
    watcher = StopStrings((stop,), decode)
    ends = [watcher.ended([7], [byte])[0] for byte in raw]
    whole = [stop in decode(raw[: i + 1]) for i in range(len(raw))]
    assert (True in ends) == (True in whole)
    if True in ends:
        assert ends.index(True) == whole.index(True)


def test_rows_are_watched_apart() -> None:
    watcher = StopStrings(("ab",), decode)
    assert watcher.ended([0, 1], list(b"aa")) == [False, False]
    assert watcher.ended([1], list(b"b")) == [True]
    assert watcher.ended([0], list(b"c")) == [False]
    assert watcher.ended([0], list(b"b")) == [False]


def test_the_whole_text_decides_where_its_end_reads_otherwise() -> None:
    watcher = StopStrings(("B",), lambda ids: decode(ids).capitalize())
    assert watcher.ended([0] * 12, list(b"ab" * 6)) == [False] * 12
    assert "B" in decode(list(b"ba")).capitalize()
