"""
The code as text: where it is, and what can be counted in it. `python -m tests.source` prints what breaks its rules.

`tests/unit/test_shape.py` asserts the rules.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cqrs_sync"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Below these, optional dependencies are at home.
EDGES = {"integrations", "testing", "cli", "demo", "__main__"}

#: Modules that backends plug into. Their Protocols may have one implementation here; others are written elsewhere.
SOCKETS = {f"cqrs_sync.{name}" for name in ("broker", "serializer", "outbox", "inbox", "container", "transactions")}
SOCKETS.add("cqrs_sync.threads.executor")

#: What plain English says otherwise: the subject has a name, and the sentence is active.
PROSE = re.compile(
    r"\b(he|his|him|himself|whoever|nobody|nobody's|somebody|somebody's|is to be|are to be|was to be|were to be"
    r"|for ever|goes on|be it|be they|ever more|now and then|seldom)\b"
    r"|\bwhat (is|was) \w+ed by\b",
    re.IGNORECASE,
)
#: Where one of these words is a term: the standby consumer of a group, a name in code, text of somebody else.
TERMS = re.compile(r"`[^`]*`")

#: Names for parts that the field has other names for.
METAPHORS = {
    "crew",
    "lane",
    "lanes",
    "scout",
    "ear",
    "desk",
    "office",
    "letter",
    "letters",
    "doctor",
    "errand",
    "errands",
    "held",
    "holding",
    "keeping",
    "silence",
    "place",
    "places",
    "lookout",
    "vitals",
    "outlet",
    "inquiry",
    "courier",
    "intake",
    "staged",
    "stager",
    "strays",
    "footprint",
    "leaving",
    "weather",
    "secrecy",
    "mending",
    "hand",
    "site",
    "guard",
    "guards",
    "troubles",
    "trouble",
    "rest",
    "tiers",
    "standstill",
    "overdue",
}


def name_of(module: Path) -> str:
    """Return the name it is imported by."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CORE = [name_of(module) for module in MODULES if module.relative_to(PACKAGE).with_suffix("").parts[0] not in EDGES]


@cache
def tree_of(module: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(module.read_text())


def roots() -> list[str]:
    """Return the modules that are no folder and lie in the package itself."""
    return sorted(module.name for module in PACKAGE.glob("*.py"))


def layers() -> list[str]:
    """Return the layers that import-linter is given."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(list(contract["layers"]) for contract in contracts if contract["type"] == "layers")


def circles() -> list[list[str]]:
    """Return the groups of modules that import each other, at whatever distance."""
    import grimp  # noqa: PLC0415 -- it comes with import-linter

    graph = grimp.build_graph("cqrs_sync", exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    reached = {module: _reached(module, imports) for module in imports}
    found = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return [list(each) for each in sorted(found)]


def _reached(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = list(imports[module])
    while ahead:
        each = ahead.pop()
        if each not in seen:
            seen.add(each)
            ahead.extend(imports.get(each, ()))
    return seen


# Classes


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield each class at the top of a module, with the module's name."""
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef):
                yield name_of(module), node


def repeated_classes() -> dict[str, list[str]]:
    """Return the names that several classes have; Django gives its commands and migrations theirs."""
    named = defaultdict(list)
    for module, node in classes():
        if not (module.startswith("cqrs_sync.integrations.django.") and node.name in {"Command", "Migration"}):
            named[node.name].append(module)
    return {name: modules for name, modules in named.items() if len(modules) > 1}


def lonely_protocols() -> dict[str, list[str]]:
    """Return the Protocols outside of socket modules that fewer than two classes implement, with those that do."""
    by_name = {node.name: node for _, node in classes()}
    found = {}
    for module, node in classes():
        if module in SOCKETS or not _is_protocol(node):
            continue
        members = _members(node, by_name)
        implementing = [
            other.name
            for _, other in classes()
            if not _is_protocol(other) and members and members <= _members(other, by_name)
        ]
        if len(implementing) < 2 and members != {"__call__"}:
            found[f"{module}.{node.name}"] = implementing
    return found


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).partition("[")[0].rpartition(".")[2] == "Protocol" for base in node.bases)


def _members(node: ast.ClassDef, by_name: Mapping[str, ast.ClassDef]) -> set[str]:
    """Return the names of methods and attributes, inherited ones too."""
    members: set[str] = set()
    for base in node.bases:
        parent = by_name.get(ast.unparse(base).partition("[")[0].rpartition(".")[2])
        if parent is not None and parent is not node:
            members |= _members(parent, by_name)
    members |= {
        target.id
        for each in node.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef):
            members.add(each.name)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            members.add(each.target.id)
        elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            members.add(each.attr)
    return members


def metaphors() -> list[str]:
    """Return the names of modules and classes that are metaphors."""
    named = {module.stem for module in MODULES} | {node.name for _, node in classes()}
    return sorted(name for name in named if METAPHORS & set(_words(name)))


def _words(name: str) -> list[str]:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    # A dead letter is the field's word.
    return re.sub(r"dead_letters?", "", words).split("_")


# Prose


def prose() -> Iterator[tuple[str, int, str]]:
    """Yield each file, line and text of a docstring, comment or string that is not plain English."""
    for module in MODULES:
        for token in tokenize.generate_tokens(io.StringIO(module.read_text()).readline):
            if token.type in {tokenize.STRING, tokenize.COMMENT} or token.type == _FSTRING:
                yield from _found(module, token.start[0], token.string)


#: From Python 3.12 on, an f-string is several tokens.
_FSTRING = getattr(tokenize, "FSTRING_MIDDLE", None)


def pages() -> Iterator[tuple[str, int, str]]:
    """Yield the same of the documentation; records of decisions stay as they were written."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for document in documents:
        if "adr" not in document.parts and document.name != "glossary.md":
            yield from _found(document, 1, document.read_text())


def _found(file: Path, first: int, text: str) -> Iterator[tuple[str, int, str]]:
    for number, line in enumerate(text.splitlines(), first):
        for match in PROSE.finditer(TERMS.sub("", line)):
            yield str(file.relative_to(ROOT)), number, match[0].lower()


# Private names


def private_reach() -> dict[str, list[str]]:
    """Return, for each file of the tests, the private names of the package that it uses."""
    private = _private_names()
    found = {}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        tree, own = tree_of(file), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "cls"}:
                own.add(node.attr)
        reached = [
            f"{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in private - own
            and ast.unparse(node.value) not in {"os", "sys", "self", "cls", "threading"}
        ]
        reached += [
            f"{node.lineno}: import {alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cqrs_sync")
            for alias in node.names
            if alias.name.startswith("_")
        ]
        if reached:
            found[str(file.relative_to(ROOT))] = reached
    return found


def _private_names() -> set[str]:
    names = set()
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name):
                names.add(node.id)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _print(title: str, lines: Mapping[str, object] | list[object]) -> None:
    print(f"\n{title}: {len(lines)}")
    for line in lines.items() if isinstance(lines, Mapping) else lines:
        print("  ", *(line if isinstance(line, tuple) else (line,)))


def main(arguments: list[str]) -> None:
    """Print everything; with words, only the parts whose titles have one of them."""
    sizes = {name_of(module): len(module.read_text().splitlines()) for module in MODULES}
    long = {name: size for name, size in sizes.items() if size > 600}
    short = {name: size for name, size in sizes.items() if size < 45}
    parts = {
        "totals": {"files": len(MODULES), "lines": sum(sizes.values()), "root": len(roots()), "layers": len(layers())},
        "modules above 600 lines": long,
        "modules below 45 lines": short,
        "import circles": circles(),
        "classes with one name": repeated_classes(),
        "Protocols with fewer than two implementations": lonely_protocols(),
        "metaphors": metaphors(),
        "prose of the package, by file": Counter(file for file, _, _ in prose()),
        "prose of the pages, by file": Counter(file for file, _, _ in pages()),
        "private names in tests, by file": {file: len(reached) for file, reached in private_reach().items()},
    }
    for title, found in parts.items():
        if not arguments or any(word in title for word in arguments):
            _print(title, found)
    if "lines" in arguments:
        _print("prose", [*prose(), *pages()])
        _print("private", [(file, each) for file, reached in private_reach().items() for each in reached])


if __name__ == "__main__":
    main(sys.argv[1:])
