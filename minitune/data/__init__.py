"""Instruction data: files to rows, rows to a train and a validation part, rows to packed and masked batches."""
