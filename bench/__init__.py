"""Measurements that anyone can run from a checkout: ``python -m bench.NAME``. Nothing imports these."""
