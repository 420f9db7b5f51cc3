"""Tokenizers, preparing corpora, indexed data sets, and the one-integer sampler."""
