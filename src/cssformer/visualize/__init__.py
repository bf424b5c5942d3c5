"""Colours, overlays, sheets and attention maps."""
