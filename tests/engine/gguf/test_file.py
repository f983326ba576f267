"""The header of a GGUF file: what is read, and what is refused in one line."""

import random
import struct

import gguf
import numpy as np
import pytest

from kvchat.engine.gguf import is_gguf
from kvchat.engine.gguf.file import GGUF, header_of
from kvchat.errors import KvchatError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_string("name", "Fähre 東")
    writer.add_array("words", ["a", "", "\u6771"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors(path):
    found = GGUF(path)
    assert found["llama.block_count"] == 3 and found["llama.eps"] == 0.5 and found["flag"] is True
    assert found["name"] == "Fähre 東"
    assert found["words"] == ("a", "", "\u6771") and found["numbers"] == (1, -2, 3)
    one, two = found.tensors["one"], found.tensors["two"]
    assert (one.shape, one.block.name, one.size) == ((2, 3), "F32", 24)
    data = path.read_bytes()
    assert np.frombuffer(data, np.float32, 6, one.offset).tolist() == list(range(6))
    assert np.frombuffer(data, np.float16, 5, two.offset).tolist() == [1] * 5
    assert found.size == len(data) and found.paths == [path]
    assert header_of(path) == data[: min(one.offset, two.offset)]


def test_a_file_is_told_by_its_bytes_or_its_name(path, tmp_path):
    blob, other, text = tmp_path / "sha256-1", tmp_path / "damaged.gguf", tmp_path / "note.txt"
    blob.write_bytes(path.read_bytes())
    other.write_bytes(b"nothing")
    text.write_bytes(b"GGU")
    assert is_gguf(blob) and is_gguf(other) and not is_gguf(text) and not is_gguf(tmp_path)
    with pytest.raises(KvchatError, match="not a GGUF"):
        GGUF(other)


def test_every_cut_is_refused_in_one_line(path):
    data = path.read_bytes()
    end = max(info.offset + info.size for info in GGUF(path).tensors.values())
    for length in range(0, end, 7):
        path.write_bytes(data[:length])
        with pytest.raises(KvchatError) as caught:
            GGUF(path)
        assert caught.value.code == "model" and str(path) in caught.value.message
        assert "\n" not in caught.value.message


def test_a_flipped_byte_never_raises_anything_else(path):
    data, chance = path.read_bytes(), random.Random(0)
    for _ in range(400):
        place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            found = GGUF(path)
            dict(found)  # arrays too
        except KvchatError as error:
            assert error.code == "model"


@pytest.mark.parametrize("version, word", [(1, "1"), (9, "9"), (3 << 24, "big-endian")])
def test_other_versions(path, version, word):
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack("<I", version) + data[8:])
    with pytest.raises(KvchatError, match=word):
        GGUF(path)


def test_counts_beyond_reason_take_no_memory(path):
    data = path.read_bytes()
    for place in (8, 16):  # tensors, fields
        path.write_bytes(data[:place] + struct.pack("<Q", 2**60) + data[place + 8 :])
        with pytest.raises(KvchatError, match="damaged"):
            GGUF(path)


def test_a_git_lfs_pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(KvchatError) as caught:
        GGUF(path)
    assert "lfs pull" in caught.value.tries[0]


@pytest.mark.parametrize("data, part", [(b"", "0 bytes"), (b"<htm", "3c 68 74 6d")])
def test_what_is_no_gguf_has_a_way_out(path, data, part):
    path.write_bytes(data)
    with pytest.raises(KvchatError, match=part) as caught:
        GGUF(path)
    assert caught.value.code == "model" and caught.value.tries
