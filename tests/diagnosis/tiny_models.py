"""A small language model that has learned something, made in seconds: bytes of the built-in text, three blocks of width 64."""

from __future__ import annotations

from pathlib import Path

import torch

from bitward_agent.diagnosis.calibration import calibration_text

SEED = 20250101
_STEPS = 500
_ROW_BYTES = 96
_ROWS = 24


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, as a Hugging Face directory has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(folder)


def train_tiny_llama(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a Llama of 3 blocks that predicts the built-in text better than chance (less than 2 nats per byte, against 5.5)."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    write_tokenizer(folder)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(calibration_text(None))["input_ids"])
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(SEED)
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 8e-3 * min(1.0, (_STEPS - step) / (_STEPS / 2))
        starts = torch.randint(0, len(tokens) - _ROW_BYTES, (_ROWS,), generator=generator)
        rows = torch.stack([tokens[start : start + _ROW_BYTES] for start in starts])
        loss = model(rows, labels=rows).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 2.0, f"the tiny model has not learned (seed {SEED}): {loss.item()}"
    model.to(dtype).save_pretrained(folder)
    return folder
