"""The sampling operator: every query looks at a few places on all scales."""

from cssformer.sampling.operator import attender, in_runs, sample_attend, sample_sum, sampler, use_backend

__all__ = ["attender", "in_runs", "sample_attend", "sample_sum", "sampler", "use_backend"]
