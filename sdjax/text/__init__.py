"""Prompts: from words to token ids, and the signs that weigh, edit and join them.

Read `vocabulary` (CLIP's words), `tokenizer_files` (a checkpoint's own), `tokens` (text to ids), `cleaning`, `emphasis`
(weights), `editing` (texts that change along a run), `words` (new ones, of textual inversions), `tags` (`<lora:..>`),
`prompts` (all of it, by style), then `grammar` (the sentences that a small text encoder knows).
"""

from sdjax.text.tokens import Tokenizer, write_word_tokenizer

__all__ = ["Tokenizer", "write_word_tokenizer"]
