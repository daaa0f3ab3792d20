"""minitune: a from-scratch Transformer and supervised fine-tuning engine in plain PyTorch."""
