"""Multi-scale deformable sampling: every query looks at a few places on all scales."""

from cssformer.ops.ms_deform import (
    Sampling,
    ms_deform_attend,
    ms_deform_attention_weights,
    ms_deform_sample,
    record_sampling,
    use_backend,
)

__all__ = [
    "Sampling",
    "ms_deform_attend",
    "ms_deform_attention_weights",
    "ms_deform_sample",
    "record_sampling",
    "use_backend",
]
