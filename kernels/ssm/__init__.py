"""State-space layers: the short convolution, the scans of Mamba-1 and Mamba-2, and the norm that closes."""
