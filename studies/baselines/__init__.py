"""Published decoders on the same backbones: what CSSFormer is compared with."""
