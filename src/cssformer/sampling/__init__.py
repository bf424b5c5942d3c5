"""The sampling operator: every query looks at a few places on all scales."""

from cssformer.sampling.operator import sample_attend, sample_sum, use_backend

__all__ = ["sample_attend", "sample_sum", "use_backend"]
