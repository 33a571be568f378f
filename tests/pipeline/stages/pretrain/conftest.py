"""What the tests of pretraining share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.contract.settings import SourceSettings

WORDS = ("baker", "miller", "teacher", "river", "mill", "bread", "bridge", "school")


@pytest.fixture
def corpus(tmp_path: Path) -> SourceSettings:
    """80 short documents."""
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"text": f"The {WORDS[i % 8]} is by the {WORDS[i // 8 % 8]}. It was {i} years ago."}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings(path=str(path))
