"""Pooling and up-sampling as products with matrices, against PyTorch's own."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cssformer.model.cia import POOLED_SIZES
from cssformer.ops.contexts import pooling_matrix, upsampling_matrix


@given(length=st.integers(1, 200))
def test_pooling_matrix_is_adaptive_average_pooling(length: int) -> None:
    expected = torch.cat([F.adaptive_avg_pool1d(torch.eye(length), size).T for size in POOLED_SIZES])
    torch.testing.assert_close(pooling_matrix(POOLED_SIZES, length), expected)


@given(length=st.integers(1, 200))
def test_upsampling_matrix_is_bilinear_interpolation(length: int) -> None:
    pools = [F.interpolate(torch.eye(size)[None], length, mode="linear")[0].T for size in POOLED_SIZES]
    torch.testing.assert_close(upsampling_matrix(POOLED_SIZES, length), torch.cat(pools, dim=1), rtol=1e-5, atol=1e-5)
