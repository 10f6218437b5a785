"""The embedded default: handwritten digits and a small CNN, with nothing to download."""
