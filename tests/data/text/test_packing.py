import errno
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ArtifactError, RecipeError, SourceError, StorageError
from data.text.packing import PackedShards, write_shards

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
# With separator 1: 5 6 7 1 | 8 1 9 10 | 11 12 13 1
BYTES = [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def pack(folder, **options):
    settings = {"context_length": 4, "vocabulary_size": 14, "separator_id": 1}
    return write_shards(folder, iter(DOCUMENTS), **{**settings, **options})


def test_documents_are_packed_in_order_with_their_boundaries(tmp_path):
    shards = pack(tmp_path)
    assert len(shards) == 3
    assert [chunk.ids.tolist() for chunk in shards] == [
        [5, 6, 7, 1],
        [8, 1, 9, 10],
        [11, 12, 13, 1],
    ]
    assert [c.document_ids.tolist() for c in shards] == [[0] * 4, [1, 1, 2, 2], [2] * 4]
    assert [c.position_ids.tolist() for c in shards] == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert shards[1].ids.dtype == np.int64


def test_the_bytes_that_a_chunk_predicts_leave_out_its_first_token(tmp_path):
    shards = pack(tmp_path, token_bytes=BYTES)
    assert [chunk.text_bytes for chunk in shards] == [2 + 3 + 0, 0 + 5 + 6, 8 + 9 + 0]
    assert shards.about.text_bytes == 33


def test_chunks_are_read_by_index_in_any_order(tmp_path):
    shards = pack(tmp_path)
    assert shards[-1].ids.tolist() == shards[2].ids.tolist() == [11, 12, 13, 1]
    with pytest.raises(IndexError, match="chunk 3 of 3"):
        shards[3]


def test_start_tokens_go_before_each_document(tmp_path):
    shards = write_shards(
        tmp_path, [[5], [6]], context_length=2, vocabulary_size=8, start_id=2, separator_id=None
    )
    assert [chunk.ids.tolist() for chunk in shards] == [[2, 5], [2, 6]]


@pytest.mark.parametrize(("keep", "chunks", "tokens"), [(False, 2, 10), (True, 3, 12)])
def test_the_tail_is_dropped_or_kept_and_counted(tmp_path, keep, chunks, tokens):
    shards = pack(tmp_path, context_length=5, keep_tail=keep, token_bytes=BYTES)
    about = shards.about
    assert (about.chunks, about.tokens, about.tail_tokens, about.tail_kept) == (
        chunks,
        tokens,
        2,
        keep,
    )
    if keep:
        assert shards[2].ids.tolist() == [13, 1]
        assert shards[2].document_ids.tolist() == [2, 2]


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_the_width_of_a_token_follows_the_vocabulary(tmp_path, size, dtype):
    shards = write_shards(tmp_path, [[size - 1, 0]], context_length=2, vocabulary_size=size)
    assert shards.about.dtype == dtype
    assert shards[0].ids.tolist() == [size - 1, 0]


@given(
    documents=st.lists(st.lists(st.integers(3, 30), max_size=12), min_size=1, max_size=12),
    length=st.integers(2, 7),
    shard=st.integers(1, 20),
)
def test_all_tokens_come_back_whatever_the_sizes(tmp_path_factory, documents, length, shard):
    stream, owners = [], []
    places: list[int] = []
    kept = [ids for ids in documents if ids]
    for number, ids in enumerate(kept):
        stream += [*ids, 1]
        owners += [number] * (len(ids) + 1)
        places += range(len(ids) + 1)
    folder = tmp_path_factory.mktemp("shards")
    options = {"context_length": length, "vocabulary_size": 31, "separator_id": 1}
    if len(stream) < 2:
        with pytest.raises(SourceError):
            write_shards(folder, documents, keep_tail=True, **options)
        return
    shards = write_shards(folder, documents, keep_tail=True, shard_tokens=shard, **options)
    read = [int(i) for chunk in PackedShards(folder) for i in chunk.ids]
    cut = len(stream) - (len(stream) % length == 1)
    assert read == stream[:cut]
    assert [int(i) for chunk in shards for i in chunk.document_ids] == owners[:cut]
    begins = [i - i % length for i in range(cut)]
    expected = [min(places[i], i - begins[i]) for i in range(cut)]
    assert [int(i) for chunk in shards for i in chunk.position_ids] == expected


def test_text_that_fills_no_context_is_refused(tmp_path):
    with pytest.raises(SourceError, match="has 12 tokens and fills no context of 64"):
        pack(tmp_path, context_length=64)
    with pytest.raises(SourceError, match="has 0 tokens"):
        write_shards(tmp_path, [[], []], context_length=4, vocabulary_size=9)
    with pytest.raises(ArtifactError, match=r"index\.json is missing"):
        PackedShards(tmp_path)


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="token id 13, the vocabulary has 13"):
        pack(tmp_path, vocabulary_size=13)
    with pytest.raises(RecipeError, match="context_length 1"):
        pack(tmp_path, context_length=1)


def test_writing_that_is_cut_off_leaves_no_index(tmp_path):
    pack(tmp_path)

    def broken():
        yield from DOCUMENTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, broken(), context_length=4, vocabulary_size=14)
    with pytest.raises(ArtifactError, match="holds no whole packed text"):
        PackedShards(tmp_path)


def test_writing_again_replaces_what_was_there(tmp_path):
    pack(tmp_path)
    shards = write_shards(tmp_path, [[3, 4]], context_length=2, vocabulary_size=9)
    assert [chunk.ids.tolist() for chunk in shards] == [[3, 4]]


def test_a_full_disk_is_told_and_leaves_no_index(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        pack(tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.bin", "bytes.bin"])
def test_a_damaged_folder_is_refused_by_the_file(tmp_path, name):
    pack(tmp_path)
    with open(tmp_path / name, "ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match=f"is damaged: {name} has"):
        PackedShards(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        PackedShards(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is damaged"), ("[]", "is damaged"), ('{"version": 0}', "version 0")]
)
def test_a_damaged_or_older_index_is_refused(tmp_path, text, told):
    pack(tmp_path)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ArtifactError, match=told):
        PackedShards(tmp_path)


def test_the_index_says_what_is_in_the_folder(tmp_path):
    pack(tmp_path, shard_tokens=9)
    about = json.loads((tmp_path / "index.json").read_text())
    assert about["shards"] == [8, 4]
    assert (about["documents"], about["tokens"], about["chunks"]) == (3, 12, 3)
