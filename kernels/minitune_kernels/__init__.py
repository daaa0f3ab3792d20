"""Triton kernels for training and sampling decoders: importable on their own, with torch and triton only.

Empty for now: the mathematics they will have to equal is in ``minitune.ops``.
"""
