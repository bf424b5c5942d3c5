"""The sampling operator: every query looks at a few places on all scales."""

from cssformer.sampling.operator import attender, sample_attend, sample_sum, sampler, use_backend

__all__ = ["attender", "sample_attend", "sample_sum", "sampler", "use_backend"]
