"""The drawing and the table of folders in docs/architecture.md, made from the imports.

`python tests/drawing.py --write` puts them into the page, between its marks; a test compares them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

from imports import ROOT, circles, files, graph
from test_structure import LAYERS, part

PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by `python tests/drawing.py --write` -->", "<!-- end of what is made -->"
GROUND = "storage"  # with it begins what all folders above use

Edges = Mapping[str, set[str]]


def folders(modules: Mapping[str, frozenset[str]]) -> dict[str, set[str]]:
    """Folder or module of the library's top -> those whose modules its own import. The package itself is none."""
    edges: dict[str, set[str]] = {part(module): set() for module in modules if part(module)}
    for module, others in modules.items():
        if part(module):
            edges[part(module)] |= {part(other) for other in others} - {part(module), ""}
    return edges


def reduced(edges: Edges) -> dict[str, set[str]]:
    """Without the edges that a longer way makes too (the transitive reduction). Needs edges without circles.

    >>> reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    {'a': {'b'}, 'b': {'c'}, 'c': set()}
    """
    assert not circles(edges), f"these import one another: {circles(edges)}"

    def reached(name: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in edges[name]))

    return {name: others - set().union(*map(reached, others)) for name, others in edges.items()}


def contracted(edges: Edges, names: set[str], one: str) -> dict[str, set[str]]:
    """`names` as one node, without the edges between them.

    >>> contracted({"a": {"b", "c"}, "b": {"c"}, "c": set()}, {"b", "c"}, "d")
    {'a': {'d'}, 'd': set()}
    """
    result: dict[str, set[str]] = {}
    for name, others in edges.items():
        node = one if name in names else name
        result.setdefault(node, set()).update({one if other in names else other for other in others} - {node})
    return result


def mermaid(edges: Edges) -> str:
    """A flowchart of the reduced edges, layers from the top down; those of the ground in a box of their own."""
    order = [name for layer in LAYERS for name in layer if name in edges]
    ground = set(order[order.index(GROUND) :])
    house = reduced(contracted(edges, ground, "ground"))
    below = reduced({name: edges[name] for name in ground})
    lines = ["flowchart TD", *(_node(name) for name in order if name in house), *_arrows(house, [*order, "ground"])]
    lines += [
        '    subgraph ground ["what all of them use"]',
        *(f"    {_node(name)}" for name in order if name in below),
    ]
    lines += [*(f"    {arrow}" for arrow in _arrows(below, order)), "    end"]
    return "\n".join(lines)


def _node(name: str) -> str:
    return f'    {name}["{label(name)}"]'


def _arrows(edges: Edges, order: list[str]) -> list[str]:
    return [f"    {name} --> {' & '.join(sorted(edges[name], key=order.index))}" for name in order if edges.get(name)]


def label(name: str) -> str:
    return f"{name}/" if home(name).name == "__init__.py" else f"{name}.py"


def home(name: str) -> Path:
    """The file whose docstring says what a folder or module is for."""
    return files()[f"rlhf_kit.{name}"]


def purpose(name: str) -> str:
    """The first sentences of its docstring."""
    text = ast.get_docstring(ast.parse(home(name).read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def table(edges: Edges) -> str:
    """A row a folder, layer by layer."""
    rows = ["| layer | folder | what it is |", "| --- | --- | --- |"]
    for number, layer in enumerate(LAYERS, start=1):
        for name in filter(edges.__contains__, layer):
            path = home(name).relative_to(ROOT)
            path = path.parent if path.name == "__init__.py" else path
            rows.append(f"| {number} | [{label(name)}](../{path.as_posix()}) | {purpose(name)} |")
    return "\n".join(rows)


def made() -> str:
    """What stands between the page's marks."""
    edges = folders(graph())
    return f"{BEGIN}\n\n```mermaid\n{mermaid(edges)}\n```\n\n{table(edges)}\n\n{END}"


def replaced(text: str) -> str:
    """The page with what is made now."""
    before, _, rest = text.partition(BEGIN)
    return before + made() + rest.partition(END)[2]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(made() + "\n")
