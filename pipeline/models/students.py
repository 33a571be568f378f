"""Makes students out of teachers: a model that has some of another's blocks."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from data.errors import ModelError


def shallower(teacher: Any, count: int | None, *, source: str) -> Any:
    """Return a model with the teacher's weights and so many of its blocks, evenly spread.

    Args:
        teacher: a model of transformers; unchanged.
        count: blocks of the student; half of the teacher's, every second, when None.
        source: what the teacher is called.

    Raises:
        ModelError: it has fewer blocks, or they are not in one list of its own (as where all
            share their weights).
    """
    total = int(teacher.config.num_hidden_layers)
    count = -(-total // 2) if count is None else count
    if count > total:
        raise ModelError(f"layers is {count}, {source} has {total}; take as many at most")
    # Cut from a copy: its weights have the names that the student's own have.
    cut = copy.deepcopy(teacher)
    lists = [m for m in cut.base_model.modules() if isinstance(m, nn.ModuleList)]
    blocks = [found for found in lists if len(found) == total]
    if len(blocks) != 1:
        raise ModelError(
            f"{source} is a {type(teacher).__name__}, whose {total} layers are not a list of "
            "blocks; name a student with `model`"
        )
    kept = [place * total // count for place in range(count)]
    for place in sorted(set(range(total)) - set(kept), reverse=True):
        del blocks[0][place]
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = count
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[place] for place in kept]
    student = type(teacher)(config)
    student.load_state_dict(cut.state_dict())
    if teacher.can_generate():  # where its answers end
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student
