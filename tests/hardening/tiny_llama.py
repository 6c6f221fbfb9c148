"""A tiny Llama that has learned a little, as a Hugging Face directory, with a tokenizer of single bytes."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitward_agent.diagnosis.calibration import calibration_text

SEED = 7
ROW_TOKENS = 64


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="!", eos_token="!")


def make_tiny_llama(folder: Path, *, steps: int = 60, dtype: torch.dtype = torch.float32) -> Path:
    """Train for some seconds on the built-in text and save. The same each time on one machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    tokenizer = _tokenizer()
    tokens = torch.tensor(tokenizer(calibration_text(None))["input_ids"][: 40 * ROW_TOKENS]).view(-1, ROW_TOKENS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        rows = tokens[step * 8 % 40 :][:8]
        optimiser.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
