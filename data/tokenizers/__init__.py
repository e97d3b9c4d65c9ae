"""Tokenizers behind one interface: trained on the corpus and cached, or loaded from a file."""

from data.tokenizers.base import Tokenizer
from data.tokenizers.saving import load, save
from data.tokenizers.special import Special
from data.tokenizers.streaming import StreamDecoder
from data.tokenizers.training import train

__all__ = ['Special', 'StreamDecoder', 'Tokenizer', 'load', 'save', 'train']
