"""Archives of arrays: the same bytes under every Python, readable by numpy and zipfile."""

import hashlib
import io
import sys
import zipfile

import numpy as np
import pytest

from polygrain.provenance.npz import npz_bytes

ARRAYS = {
    "train": np.arange(7),
    "a/10%/top1.score": np.array([[0.5, 1 / 3], [2.0, -1.0]]),
    "one": np.array([True, False]),
    "empty": np.empty(0, dtype=np.int64),
}


def test_numpy_reads_what_was_written():
    with np.load(io.BytesIO(npz_bytes(ARRAYS)), allow_pickle=False) as archive:
        assert archive.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert archive[name].dtype == array.dtype
            np.testing.assert_array_equal(archive[name], array)


def test_the_archive_is_sound():
    with zipfile.ZipFile(io.BytesIO(npz_bytes(ARRAYS))) as archive:
        assert archive.testzip() is None
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with zipfile.ZipFile(io.BytesIO(npz_bytes({}))) as archive:
        assert archive.namelist() == []


def test_the_bytes_are_these_under_every_python():
    assert hashlib.md5(npz_bytes(ARRAYS)).hexdigest() == "75752ee8877468df81cf4a54a8947e03"


@pytest.mark.skipif(sys.version_info < (3, 11, 4), reason="Python's zipfile wrote other headers before 3.11.4")
def test_the_bytes_are_those_of_numpy():
    stream = io.BytesIO()
    np.savez(stream, **ARRAYS)
    assert npz_bytes(ARRAYS) == stream.getvalue()


def test_an_array_of_objects_is_refused():
    with pytest.raises(ValueError, match="allow_pickle"):
        npz_bytes({"x": np.array([None])})
