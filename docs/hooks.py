"""What MkDocs builds from the code, from results and from files outside of docs/: pages that nobody writes."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from product_classificator.cli import app

ROOT = Path(__file__).parents[1]
COPIED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
GENERATED = ("reference/commands.md", "results/sources.md", *COPIED.values())


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    contents = [commands(), sources(), *((ROOT / name).read_text(encoding="utf-8") for name in COPIED)]
    for path, content in zip(GENERATED, contents, strict=True):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to the copies of what lies outside of docs/, and to docs/ from there."""
    up = "../" * page.file.src_uri.count("/")
    for name, copy in COPIED.items():
        markdown = markdown.replace(f"]({up}../{name})", f"]({up}{copy})")
    return markdown.replace("](docs/", "](") if page.file.src_uri in COPIED.values() else markdown


def commands() -> str:
    """Return the page of all commands with their options, as the command line itself describes them."""
    text = app.generate_docs().replace("(#product-classificator-", "(#")
    first, *others = re.split(r"^## product-classificator (?:--)?", text, flags=re.MULTILINE)
    summary = first[first.index("**Commands**") :]
    return "\n## ".join([f"# Commands\n\n{summary.rstrip()}\n", *others])


def sources() -> str:
    """Return the page that says of every figure where, when and by which commit it was measured."""
    lines = [
        "# Where figures come from",
        "",
        "Tables are filled from files in `benchmarks/results/`, which programs in `benchmarks/` wrote.",
        "",
        "| results | date | commit | machine | Python |",
        "|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        cpu = facts.get("cpu", "").split(",")[0].strip()
        machine = ", ".join(filter(None, (facts.get("gpu"), cpu, facts["machine"])))
        date = facts["date"][:10].replace("-", "\u2011")  # not broken at the end of a line
        cells = (f"`{path.stem}`", date, f"`{facts['commit']}`", machine, facts.get("python", ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
