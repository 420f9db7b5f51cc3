"""Tokenizers, preparing corpora, indexed data sets, and the one-integer sampler. Arrays are NumPy; never torch."""

from framework.data.batches import IGNORED, TrainData, ValidationData
from framework.data.corpora import BUILT_IN, Corpus, find_corpus
from framework.data.indexed import TokenStream
from framework.data.malformed import Skipped, refuse
from framework.data.open import DataSet, open_data
from framework.data.prepare import Rules, prepare_corpus
from framework.data.prepared import Manifest, Prepared, is_prepared, open_prepared
from framework.data.tokenizer_training import train_tokenizer
from framework.data.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "BUILT_IN", "IGNORED", "Corpus", "DataSet", "Manifest", "Prepared", "Rules", "Skipped", "TokenStream", "Tokenizer",
    "TrainData", "ValidationData", "find_corpus", "is_prepared", "load_tokenizer", "open_data", "open_prepared",
    "prepare_corpus", "refuse", "train_tokenizer",
]
