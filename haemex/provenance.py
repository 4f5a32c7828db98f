"""Which code a rule's result depends on, so that an edit re-runs exactly what it touches.

Snakemake compares a script by its modification time and never looks at imported modules. Each rule therefore carries
`params: code=code_version("<rule>")`: the digest changes when the meaning of the script or of any `haemex` module
behind it changes, and with nothing else.
"""

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What these do never changes a result: how a message is printed, a training is watched or kept from running twice, and
# how this digest is made.
WITHOUT_EFFECT = frozenset({"devices", "locks", "logs", "monitoring", "provenance"})


def code_version(rule, root=ROOT):
    """Digest the code behind a rule; comments, docstrings, layout and file times do not count.

    Parameters
    ----------
    rule : str
        Name of the rule and of its script `workflow/scripts/<rule>.py`.
    root : path-like
        Folder that holds `workflow/` and `haemex/`.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    root = Path(root)
    script = root / "workflow" / "scripts" / f"{rule}.py"
    digest = hashlib.sha256(_meaning(script, script.stat().st_mtime_ns)[0].encode())
    for module in modules_behind(script, root):
        path = root / "haemex" / f"{module}.py"
        digest.update(f"\n{module}\n{_meaning(path, path.stat().st_mtime_ns)[0]}".encode())
    return digest.hexdigest()[:16]


def folder_version(folder, *names, root=ROOT):
    """Digest the files of a folder, such as the report's templates: names and contents, no times.

    Parameters
    ----------
    folder : str
        A folder below `root`.
    names : str
        Files in it; by default all, those of its subfolders too.
    root : path-like
        Folder of the project.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    everything = (path for path in Path(root, folder).rglob("*") if path.is_file())
    for path in sorted([Path(root, folder, name) for name in names] or everything):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def modules_behind(script, root=ROOT):
    """List the `haemex` modules a file imports, directly or through others, sorted.

    Imports inside functions count as well. `WITHOUT_EFFECT` is left out.
    """
    found, waiting = set(), [Path(script)]
    while waiting:
        path = waiting.pop()
        for module in _meaning(path, path.stat().st_mtime_ns)[1] - found - WITHOUT_EFFECT:
            found.add(module)
            waiting.append(Path(root) / "haemex" / f"{module}.py")
    return sorted(found)


@functools.cache
def _meaning(path, _mtime_ns):
    """Return a file's syntax tree as text, without docstrings, and the names of the `haemex` modules it imports."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"), filename=str(path))
    imported = set()
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("haemex."))
        elif isinstance(node, ast.ImportFrom) and node.module == "haemex":
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("haemex."):
            imported.add(node.module.split(".")[1])
    return ast.dump(tree), frozenset(imported)


def _statements(tree):
    """List a module and all its statements. Definitions and imports stand nowhere else, and expressions are many."""
    found = [tree]
    for node in found:  # grows
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            found += getattr(node, part, ())
    return found
