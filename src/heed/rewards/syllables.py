"""How many syllables an English text has: rules of spelling, and a list of words that break them."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d")

_COMPOUND = re.compile(
    # First halves that keep their silent e or y: fire-fly, home-sick, every-thing.
    r"(base|bride|care|else|every|eye|fire|grape|grave|home|horse|house|ice|lake|life|lime|name|nine|pine|rose|shore|side|smoke|some|space"
    r"|stone|tide|time|vine|ware|waste)(?!ss|rs)([^aeiou].{2,})"
)

_SILENT = (
    # Inside, before a suffix: love-ly, safe-ty, move-ment; but set-tle-ment, in-cre-ment.
    re.compile(
        r"([aeiouy].*[^aeiouy])(?<![^aeiouy][lr])e"
        r"(?=(?:ly|ments?|ful|fully|less|lessly|ness|some|wards?|ty|li(?:ness|er|est))$)"
    ),
    # At the end: make, times, walked, tongue; but lit-tle, a-cre, wish-es, want-ed, set-tled, hun-dred.
    re.compile(
        r"([aeiouy].*)(?:(?<=[qg])ue(?=[sd]?$)|(?<=[^aeiouy])(?<![^aeiouylr]l)(?<![^aeiouyr]r)"
        r"(?:e$|(?<![scxzg])(?<!ch)(?<!sh)e(?=s$)|(?<![td])e(?=d$)))"
    ),
)

_SPLIT = re.compile(
    # Vowels side by side that are spoken apart, and the one syllable without a vowel (pris-m, rhyth-m).
    r"^gia|ia(?=te|tion)|(?<![ctsg])ia(?!ge)|(?<![ctsgxnh])(?<!ll)io|niou|iu"
    r"|iet|^scie|(?<![ctsn])ien(?=$|s$|t|c[ey])|[aeiouy].*[^aeiouy](?:iers?|iest|eas?)$"
    r"|^geo[glm]|(?<![gp])eo|creat(?!ure)|^react|reali|theat"
    r"|(?<![qg])ua(?![dv])|(?<![qg])ue(?:l|t$|n[ct])|[dlr]uin|[lr]uid|[nt]uit|suici|enuin|uou"
    r"|poe[mt]|coex|oic$|aic$|chao|^cooper|^coord|[aeiouy](?=ings?$)|[aeiou]y(?=[aou]|e[^ds])|^[ch]y(?=[ae])"
    r"|(?:s|th)m(?=s?$)"
)

_KNOWN = {
    # Also in the plural.
    word: num_syllables
    for num_syllables, words in {
        1: "aches aisle isle ma'am ne'er o'er prayer y'all",
        2: """argue argued boa brilliant business cafe cashier colonel crooked drier driest dryer evening every flyer frontier glacier
            jagged leopard maybe naive naked ragged righteous rugged savior soldier someone therefore valiant wednesday wicked
            wretched""",
        3: """adobe anyone behavior cereal civilian coyote element familiar foliage italian jeopardy karate koala linear nuclear oasis
            parliament peculiar peonies peony recipe silhouette simile tenement vehement""",
        4: "anemone apostrophe catastrophe ethereal karaoke",
    }.items()
    for word in words.split()
}

_CONTRACTED = {
    # The words after which what is left of a contraction is a syllable: horse's, it'd, that'll, did(n)'t, have(n)'t.
    "s": re.compile(r".*(?:[sxz]|[cs]h|[cgsz]e)"),
    "d": re.compile(r".*[dt]"),
    "t": re.compile(r".*(?:[^aeiouy]|ve)"),
    "m": re.compile(r"(?!)"),
} | dict.fromkeys(("ll", "re", "ve"), re.compile(r".*[^aeiouyw]"))


def count_syllables(text: str) -> int:
    """The syllables of an English text as usually spoken: 1 or more for each word, digits read one by one."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    return sum(_of_word(word) for word in _WORD.findall("".join(c for c in plain if not unicodedata.combining(c))))


def _of_word(word: str) -> int:
    for known in (word, word.removesuffix("s")):
        if known in _KNOWN:
            return _KNOWN[known]
    if word.isdigit():
        return 2 if word in "07" else 1
    if "'" in word:
        return _of_contraction(*word.rsplit("'", 1))
    if compound := _COMPOUND.fullmatch(word):
        return _of_word(compound[1]) + _of_word(compound[2])
    spoken = word
    for silent in _SILENT:
        spoken = silent.sub(r"\1", spoken)
    return max(1, len(re.findall("[aeiouy]+", spoken)) + len(_SPLIT.findall(word)))


def _of_contraction(base: str, ending: str) -> int:
    if ending not in _CONTRACTED:
        return _of_word(base) + _of_word(ending)
    if ending == "t":
        base = base.removesuffix("n")
    return _of_word(base) + bool(_CONTRACTED[ending].fullmatch(base))
