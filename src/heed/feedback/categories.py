"""What a prompt may hold that people asked not to see: the names in its tag `categories`, with commas between.

Items keep them too, for databases cannot split at commas when they look for what may be given out. Both change together.
"""

from __future__ import annotations

from collections.abc import Mapping


def categories_of(tags: Mapping[str, str]) -> list[str]:
    """The names, case-folded, each once."""
    return list(_names(tags))


def as_spelt(tags: Mapping[str, str]) -> list[str]:
    """The names as people read them, each once."""
    return list(_names(tags).values())


def merged_tags(tags: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """What two sources say of one prompt: the later value of each tag, but the categories of both, for no source takes a warning back."""
    both, names = {**tags, **more}, _names(tags, more)
    if names:
        both["categories"] = tags["categories"] if len(names) == len(_names(tags)) else ", ".join(names.values())
    return both


def _names(*sources: Mapping[str, str]) -> dict[str, str]:
    """By their case-folded form, as they were spelt first."""
    found = [name.strip() for tags in sources for name in tags.get("categories", "").split(",") if name.strip()]
    names: dict[str, str] = {}
    for name in found:
        names.setdefault(name.casefold(), name)
    return names
