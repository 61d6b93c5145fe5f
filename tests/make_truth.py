"""Run every check that measures an error against an oracle, and write docs/truth.md from what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = """# Truth

Every row is a check that the tests make: a formula of ours against a closed form or an independent implementation.
The error is the largest that was measured, the tolerance what the test allows. `make truth` writes this page
from the same code that `make test` runs{where}.

"""


def measure(directory: Path) -> list[dict]:
    """Run the tests that use the `truth` fixture; their rows."""
    environment = {**os.environ, "MEZZOTINT_TRUTH": str(directory)}
    command = [sys.executable, "-m", "pytest", "-m", "truth", "-n", "2", "--dist", "worksteal"]
    if subprocess.run(command, env=environment).returncode:
        sys.exit("a check failed; docs/truth.md is left as it was")
    return [json.loads(line) for file in sorted(directory.glob("*.jsonl")) for line in file.read_text().splitlines()]


def page(rows: list[dict], where: str) -> str:
    """The table in Markdown: one part a system, its largest error where a check was made several times."""
    worst: dict[tuple[str, str, str], dict] = {}
    for row in rows:
        key = (row["system"], row["what"], row["against"])
        if key not in worst or row["error"] > worst[key]["error"]:
            worst[key] = row
    text = HEAD.format(where=where)
    for system in sorted({key[0] for key in worst}):
        text += f"## {system}\n\n| what | against | error | tolerance |\n|---|---|---|---|\n"
        for key in sorted(key for key in worst if key[0] == system):
            row = worst[key]
            cells = [row["what"], row["against"], f"{row['error']:.2g}", f"{row['tolerance']:.2g}"]
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
        text += "\n"
    return text


def main() -> None:
    """Measure and write."""
    import torch

    with tempfile.TemporaryDirectory() as directory:
        rows = measure(Path(directory))
    where = f" ({len(rows)} measurements; torch {torch.__version__.split('+')[0]}, CPU)"
    (Path(__file__).parents[1] / "docs" / "truth.md").write_text(page(rows, where))
    print(f"docs/truth.md: {len(rows)} measurements")


if __name__ == "__main__":
    main()
