"""Multi-scale deformable sampling: every query looks at a few places on all scales."""

from cssformer.ops.ms_deform import ms_deform_attend, ms_deform_sample, use_backend
from cssformer.ops.recording import Sampling, record_sampling
from cssformer.ops.reference import ms_deform_attention_weights

__all__ = [
    "Sampling",
    "ms_deform_attend",
    "ms_deform_attention_weights",
    "ms_deform_sample",
    "record_sampling",
    "use_backend",
]
