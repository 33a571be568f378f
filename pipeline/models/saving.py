"""Whether a model can be saved, found out before it is trained: everything but its weights."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from data.errors import ModelError, RlhfError, in_words
from pipeline.contract.generation_settings import unset_unread
from pipeline.models.load import save_model
from reward.network.files import GENERATION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext


def try_saving(
    context: StageContext[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Save all of a model but its weights into a folder that is removed again; say what changes.

    Called before training, on every process; the main process writes.

    Raises:
        ModelError: transformers refuses, with its reason.
    """
    config = getattr(model, "generation_config", None)
    unset = {} if config is None else unset_unread(config)
    if unset:
        listed = ", ".join(f"{name} {value}" for name, value in unset.items())
        context.say(f"{GENERATION}: {listed} left out, since its other settings overrule them")
    if not context.main_process:
        return
    folder = context.folder / "work" / "trial"
    try:
        save_model(model, tokenizer, folder, weights={})
    except RlhfError:
        raise
    except Exception as error:
        raise ModelError(
            f"stage {context.name}: a {type(model).__name__} with this configuration can't be "
            f"saved: {in_words(error)}; correct the checkpoint's config.json or {GENERATION}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
