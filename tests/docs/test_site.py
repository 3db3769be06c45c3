"""Guarantees of the documentation: every module is in the reference, every link leads somewhere,
nothing is fetched, and what other programs read (.github, pre-commit) is as they expect it.
"""

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def tracked(pattern):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def broken_links(page):
    """Relative links of a Markdown file, outside code, that lead to no file."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [target for target in targets if not re.match(r"[a-z]+:|#", target)]
    return [link for link in relative if not (page.parent / link.split("#")[0]).exists()]


def test_relative_links_of_all_markdown_lead_to_files():
    pages = tracked("*.md")
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in pages}
    broken = {page.relative_to(ROOT): broken_links(page) for page in pages}
    assert not {page: links for page, links in broken.items() if links}


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#part) [b](missing.md) `[c](code.md)` [d](https://example.org)\n")
    assert broken_links(page) == ["missing.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [BIN / "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_reference_has_every_module(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "moxin_lab").rglob("*.py")
    }
    modules = {name.removesuffix(".__init__") for name in modules}
    assert len(modules) > 100 and modules <= documented, modules - documented


def test_the_menu_has_every_page(site):
    menu = (site / "index.html").read_text()
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert not {page for page in pages if f'href="{page}"' not in menu and page != "index.html"}


def test_pages_of_the_site_link_to_files_of_it_and_fetch_nothing(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link)\b[^>]*(?:src|href)="(?:https?:)?//', text), (
            page
        )
        if page.name == "404.html":  # its links count from the server's root
            continue
        for link in re.findall(r'(?:src|href)="([^"#?]+)[#?"]', text):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def validate(schema, *files):
    result = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", f"vendor.github-{schema}", *files],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_issue_forms_are_valid():
    assert len(FORMS) >= 3
    validate("issue-forms", *FORMS)


def test_workflow_is_valid_runs_the_ci_script_and_reads_no_secret():
    path = ROOT / ".github" / "workflows" / "ci.yml"
    validate("workflows", path)
    text = path.read_text()
    steps = yaml.safe_load(text)["jobs"]["run"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert "secrets" not in text


def test_pre_commit_runs_the_checks_of_make_test_except_pytest():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checks = [line.strip().removeprefix("$(BIN)/") for line in recipe.group(1).splitlines()]
    assert [*hooks, "pytest -n $(WORKERS) --dist loadfile"] == checks
    assert all(repo["repo"] == "local" for repo in config["repos"]), "would be fetched"


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "moxin_lab" / "py.typed").is_file()
