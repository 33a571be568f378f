#!/usr/bin/env bash
# argilla 2.8: answers to a ranking question lose their ranks on the way from the server.
#
# The server keeps `[{"value": "a", "rank": 2}, {"value": "b", "rank": 1}]`; its pages send all options
# in the order of the question's settings, each with its rank. `UserResponse.from_model`, through which
# `Dataset.records` reads, keeps the values alone. So `to_list`, `to_json`, `to_datasets` and `to_disk`
# write the options in their own order for whoever ranked them however, ties included. The REST API
# (`api/v1/datasets/ID/records?include=responses`) tells the ranks.
#
# Also seen with 2.8.0: `import argilla` needs `requests`, which the package does not ask for, and
# `to_list(flatten=False)` does not tell whether a response was submitted, a draft or discarded.
#
# Seen with argilla 2.8.0:
#   said [{'value': 'a', 'rank': 2}, {'value': 'b', 'rank': 1}]
#   read ['a', 'b']
#
# Exits 0 while this is so, 1 once ranks are read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "argilla==2.8.0" "requests==2.32.5"
cd "$folder"
HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock
from uuid import UUID

import argilla as rg
from argilla._models import UserResponseModel
from argilla.responses import UserResponse

question = rg.RankingQuestion(name="order", values=["a", "b"], client=MagicMock())
settings = SimpleNamespace(questions={"order": question})
record = SimpleNamespace(dataset=SimpleNamespace(settings=settings))
said = [{"value": "a", "rank": 2}, {"value": "b", "rank": 1}]
answer = UserResponseModel(
    values={"order": {"value": said}}, status="submitted", user_id=UUID(int=1)
)
(response,) = UserResponse.from_model(answer, record=record)
print("said", said)
print("read", response.value)
sys.exit(response.value != ["a", "b"])
PYTHON
