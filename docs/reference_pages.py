"""Hook of mkdocs: one page of the API reference per package, with every module in it.

Guarantees: a module that exists is on a page (tests/docs/test_site.py). Out of scope: the text,
which is that of the docstrings.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PACKAGE = "moxin_lab"
TOP = "top_level"


def modules(root: Path) -> dict[str, list[str]]:
    """Dotted names of all modules below `root`, by package; those in no package are `top_level`."""
    by_page: dict[str, list[str]] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        package = parts[1] if len(parts) > 2 else TOP
        by_page.setdefault(package, []).append(name)
    return by_page


def page(package: str, names: list[str]) -> str:
    """Markdown of one package's page."""
    title = f"`{PACKAGE}`, top level" if package == TOP else f"`{PACKAGE}.{package}`"
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)]) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """mkdocs calls this with the files of docs/; adds the pages."""
    for package, names in modules(Path(config.config_file_path).parent).items():
        files.append(File.generated(config, f"api/{package}.md", content=page(package, names)))
    return files
