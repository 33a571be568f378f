#!/usr/bin/env bash
# datasets 5.2: strings of a column of mixed types come back as other values.
#
# A JSON Lines file whose column `answer` holds strings beside objects is given the feature `Json`.
# A string that reads as JSON is then stored as it is instead of as a JSON string, so that reading
# gives another value without a warning: "007" comes back as 7, "null" as None, "true" as True,
# "1e3" as 1000.0. `Dataset.from_dict(..., on_mixed_types="use_json")` does the same.
#
# Seen with datasets 5.2.0, pyarrow 26.0.1:
#   written ['007', 'null', 'true', '1e3', 'text', {'a': 1}]
#   read    [7, None, True, 1000.0, 'text', {'a': 1}]
#
# Exits 0 while this is so, 1 once strings come back as strings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "datasets==5.2.0" "pyarrow==26.0.1"
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

from datasets import load_dataset

written = ["007", "null", "true", "1e3", "text", {"a": 1}]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"answer": value}) + "\n" for value in written)
read = load_dataset("json", data_files="rows.jsonl", split="train")["answer"][:]
print("written", written)
print("read   ", read)
sys.exit(read != [7, None, True, 1000.0, "text", {"a": 1}])
PYTHON
