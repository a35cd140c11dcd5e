"""Which data and configuration made which model: the stages of a run as a graph, drawn as arcs down a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heed.report.run import Stage

ROW_HEIGHT, WIDTH = 52, 76
"""In pixels."""


@dataclass(frozen=True, slots=True)
class Node:
    """One row: a stage, or something from outside the run that stages read."""

    label: str
    hash: str
    stage: Stage | None
    parents: Sequence[tuple[int, str]]
    """Row and input name of everything that it was made from."""


def lineage(stages: Sequence[Stage]) -> list[Node]:
    """The stages in order, each outside input just above the first stage that reads it; the report itself is left out."""
    rows: dict[str, int] = {}
    nodes: list[Node] = []
    made = [stage for stage in stages if stage.kind != "report"]
    owner = {stage.hash: stage.name for stage in made if stage.hash}
    for stage in made:
        parents = []
        for name, digest in stage.inputs.items():
            source = stage.sources.get(name, "")
            origin = source.partition("/")[0]
            key = origin if origin in {s.name for s in made} else owner.get(digest, source or f"{name} {digest}")
            if key not in rows:
                rows[key] = len(nodes)
                nodes.append(Node(source or name, digest, None, []))
            parents.append((rows[key], name))
        rows[stage.name] = len(nodes)
        nodes.append(Node(stage.name, stage.hash, stage, parents))
    return nodes


def arcs(nodes: Sequence[Node]) -> list[str]:
    """An SVG path for each edge, from the row of what was read to the row of what was made of it."""
    x = WIDTH - 12
    pairs = sorted({(parent, child) for child, node in enumerate(nodes) for parent, _ in node.parents})
    paths = []
    for parent, child in pairs:
        start, end = centre(parent), centre(child)
        bulge = 0 if child - parent == 1 else min(10 + 6 * abs(child - parent), (x - 4) * 4 // 3)
        paths.append(f"M{x} {start}C{x - bulge} {start} {x - bulge} {end} {x} {end}")
    return paths


def centre(row: int) -> int:
    return row * ROW_HEIGHT + ROW_HEIGHT // 2
