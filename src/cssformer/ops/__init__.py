"""Multi-scale deformable sampling: every query looks at a few places on all scales."""

from cssformer.ops.ms_deform import attender, ms_deform_attend, ms_deform_sample, sampler, use_backend

__all__ = ["attender", "ms_deform_attend", "ms_deform_sample", "sampler", "use_backend"]
