"""Which model classes transformers has for an architecture, told without loading any of them.

Its tables of classes are read from their source, as data: importing the module that holds them
loads torch, which takes longer than all checks of a recipe together.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Head = Literal["causal", "sequence", "token", "question", "masked", "seq2seq"]

AUTO_CLASSES: Mapping[Head, str] = {
    "causal": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "question": "AutoModelForQuestionAnswering",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""Class that loads a model with such a head; a checkpoint with code of its own names these."""
_TABLES: Mapping[Head | None, str] = {
    None: "MODEL_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


def is_known(model_type: str) -> bool:
    """Tell whether the installed transformers has an architecture of this name."""
    return any(model_type in table for table in _tables().values())


def class_with(head: Head, model_type: str) -> str | None:
    """Return the class of an architecture with a head, None where transformers has none."""
    return _tables()[head].get(model_type)


@functools.cache
def _tables() -> dict[Head | None, dict[str, str]]:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None, "transformers is installed"
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    wanted = {name: head for head, name in _TABLES.items()}
    tables: dict[Head | None, dict[str, str]] = {}
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        target = statement.targets[0]
        if isinstance(target, ast.Name) and target.id in wanted:
            pairs = ast.literal_eval(statement.value.args[0])
            tables[wanted[target.id]] = {str(kind): str(name) for kind, name in pairs}
    return tables
