"""Text in: prompts to token ids."""

from sdjax.text.tokens import Tokenizer, write_word_tokenizer

__all__ = ["Tokenizer", "write_word_tokenizer"]
