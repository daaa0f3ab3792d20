"""Decoders written by hand, and what they share: the Linear seam, the norm, the key/value cache, the family names."""
