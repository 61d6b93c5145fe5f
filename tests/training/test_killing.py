"""kill -9 at any moment, the writing of a checkpoint included: the resumed run ends bit-identical."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_killed_run_ends_as_if_it_had_never_stopped(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "killing.py"), str(tmp_path), "20", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 20
    assert all(row["same"] for row in rows), rows
    assert not any(row["leftovers"] for row in rows), rows
    assert [row["doing"] for row in rows[::2]] == ["training"] * 10
    assert {row["doing"] for row in rows[1::2]} <= {"writing", "just written"}
    assert "writing" in {row["doing"] for row in rows}
