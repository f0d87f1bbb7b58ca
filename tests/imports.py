"""Who imports whom in `rlhf_kit`, by statements and by strings such as "rlhf_kit.eval.coqa.task:run"."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def files(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the library by its dotted name; a package stands for its `__init__`."""
    return {module_name(path, root): path for path in sorted((root / "rlhf_kit").rglob("*.py"))}


def imports(path: Path, modules, root: Path = ROOT) -> set[str]:
    """The modules that a file imports: at its top, inside a function, or by a string that names one.

    `from package import module` is an import of the module, `from package import name` one of the package.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _modules(ast.walk(tree), path, modules, root)


def _modules(nodes, path: Path, modules, root: Path) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(root).parts[: -node.level]) if node.level else ""
            base = ".".join(filter(None, [package, node.module]))
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else base for name in inner}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("rlhf_kit."):
            names.add(node.value.partition(":")[0])
    return names & {*modules}


@cache
def graph(root: Path = ROOT) -> dict[str, frozenset[str]]:
    """module -> the modules of ours that it imports."""
    modules = files(root)
    return {module: frozenset(imports(path, modules, root) - {module}) for module, path in modules.items()}


def _run(node: ast.AST):
    """The nodes below this one that can run: neither what is for types alone nor a string."""
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, ast.Constant):
            yield child
            yield from _run(child)


@cache
def statements(root: Path = ROOT) -> dict[str, frozenset[str]]:
    """As `graph`, of the import statements that can run, at the top or in a function: no string, no type's import."""
    modules = files(root)
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules.items()}
    return {
        module: frozenset(_modules(_run(tree), modules[module], modules, root) - {module})
        for module, tree in trees.items()
    }


def circles(edges) -> list[list[str]]:
    """Groups of modules that import one another, over any number of others (Tarjan 1972)."""
    number, lowest, stack, groups = {}, {}, [], []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(group)

    for module in edges:
        if module not in number:
            visit(module)
    return groups


def longest_chain(edges) -> list[str]:
    """The longest way down from import to import. Needs a graph without circles."""

    @cache
    def below(module: str) -> tuple[str, ...]:
        return (module, *max(map(below, sorted(edges[module])), key=len, default=()))

    return list(max(map(below, edges), key=len))
