"""Triton kernels. Imported only where they run, since Triton is not installed everywhere."""
