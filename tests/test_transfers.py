"""Uploads: every array arrives, aligned, in one copy. What needs pinned memory, a CPU cannot show."""

import numpy as np
import pytest
import torch

from job.engine.transfers import ALIGNMENT, Download, Upload, num_bytes

CPU = torch.device("cpu")
ARRAYS = (
    np.arange(5, dtype=np.int32),
    np.array([[1.5], [-np.inf]], np.float32),
    np.empty((0, 4), np.int32),
    np.array([2**62, -1, 7], np.int64),
    np.array([True, False, True]),
    np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::2],
    np.array(3, np.int64),
)


def test_arrays_arrive_with_their_shapes_and_dtypes() -> None:
    for array, tensor in zip(ARRAYS, Upload(CPU)(*ARRAYS), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
        assert tensor.data_ptr() % ALIGNMENT == 0


def test_an_upload_is_one_buffer_that_no_later_upload_writes_to() -> None:
    upload = Upload(CPU)
    tensors = upload(*ARRAYS)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    for _ in range(5):
        upload(*(np.zeros_like(array) for array in ARRAYS))
    assert tensors[0].tolist() == [0, 1, 2, 3, 4]


def test_an_upload_may_go_to_a_fixed_address() -> None:
    buffer = torch.zeros(num_bytes(*ARRAYS) + 32, dtype=torch.uint8)
    for offset in (0, 7):
        arrays = [array + array.dtype.type(offset) for array in ARRAYS]
        tensors = Upload(CPU)(*arrays, into=buffer)
        assert tensors[0].data_ptr() == buffer.data_ptr()
        for array, tensor in zip(arrays, tensors, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
    assert not buffer[-32:].any()


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(RuntimeError):
        Upload(CPU)(*ARRAYS, into=torch.zeros(16, dtype=torch.uint8))


def test_nothing_can_be_uploaded() -> None:
    assert Upload(CPU)() == []


def test_a_download_is_the_tensor() -> None:
    assert Download(torch.tensor([[1, 2], [3, 4]])).result().tolist() == [[1, 2], [3, 4]]
