"""Files of weights: saved networks, and backbones' pretrained weights."""
