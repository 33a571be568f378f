"""Uploads a published model to a repository of the Hugging Face hub, in one commit.

The weights go from where the stage left them. The token is `huggingface_hub`'s own: `HF_TOKEN`, or
what `hf auth login` stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data.errors import StorageError, UsageError, in_words
from data.network import hub_trouble
from pipeline.publish.files import CARD, Files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_OF_AN_EMPTY_ONE = {".gitattributes"}
"""What a repository has that was only made."""


def require_repository(name: str, *, update: bool) -> None:
    """Refuse a repository that can't be written, or that is there and not meant to be.

    Raises:
        UsageError: the name is none, no token is there, or the repository holds something.
        StorageError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if name.count("/") != 1:
        raise UsageError(f"hub:{name} names no repository; write hub:ORG/NAME")
    trouble = hub_trouble()
    if trouble is not None:
        raise StorageError(
            f"hub:{name} can't be reached ({trouble}); publish into a folder instead"
        )
    if get_token() is None:
        raise UsageError(
            f"hub:{name} needs a token that may write; run `hf auth login`, or set HF_TOKEN"
        )
    with _told(name):
        try:
            held = _held(HfApi(), name)
        except RepositoryNotFoundError:
            held = set()
    if held and not update:
        raise UsageError(
            f"hub:{name} holds {len(held)} files already; give --update to commit this model in "
            "their place, or name another repository"
        )


def _held(api: HfApi, name: str) -> set[str]:
    return set(api.list_repo_files(name)) - _OF_AN_EMPTY_ONE


def upload(files: Files, name: str, *, public: bool, message: str, quiet: bool = False) -> str:
    """Commit files to a repository, made where it is not there; return the commit's address.

    What else the repository holds is removed by the same commit, its history keeps it.

    Args:
        files: what is published.
        name: ORG/NAME.
        public: whether all may see a repository that is made; else its owner alone.
        message: of the commit.
        quiet: whether no bars are drawn.

    Raises:
        UsageError: the hub refuses, with its reason.
        StorageError: it can't be reached any more.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    with _told(name):
        api.create_repo(name, private=not public, exist_ok=True)
        added = [CommitOperationAdd(path, str(place)) for path, (place, _) in files.kept.items()]
        added += [CommitOperationAdd(path, text.encode()) for path, text in files.texts.items()]
        gone = sorted(_held(api, name) - files.kept.keys() - files.texts.keys())
        removed = [CommitOperationDelete(path) for path in gone]
        commit = api.create_commit(name, [*added, *removed], commit_message=message)
    return str(commit.commit_url)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn an answer of the hub that refuses into one sentence, which never holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"hub:{name} names no repository ({in_words(error)})") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        why = error.server_message or in_words(error)
        way_out = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            403: "use a token that may write there, or name a repository of your own",
            409: "name another repository",
        }.get(status or 0, f"look at {CARD} and the name, or try again later")
        raise UsageError(f"hub:{name}: the hub answers {status} ({why}); {way_out}") from error
    except OSError as error:  # of the network; those of the hub's client are its children
        raise StorageError(
            f"hub:{name}: the upload broke off ({in_words(error)}); nothing was committed, run the "
            "command again"
        ) from error
