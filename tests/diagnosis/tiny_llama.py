"""A Llama of 4 blocks that learned to go round a ring of words, as a Hugging Face directory; made in seconds, the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = 64
RING = 61
SEED = 20261122
STEPS = 120


def passage(length: int, seed: int) -> str:
    """Words that follow a rule (each is the one before plus one of two strides, by the sentence), so that a model can learn it."""
    generator = torch.Generator().manual_seed(seed)
    words: list[str] = []
    while len(words) < length:
        at = int(torch.randint(RING, (), generator=generator))
        stride = 3 if at % 2 else 5
        for _ in range(16):
            words.append(f"w{at}")
            at = (at + stride) % RING
    return " ".join(words[:length])


def _tokenizer(folder: Path) -> None:
    vocabulary = {f"w{number}": number for number in range(WORDS - 1)} | {"[UNK]": WORDS - 1}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def make_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16, steps: int = STEPS, seed: int = SEED) -> Path:
    """Train it and save it; another ``steps`` with the same seed is an older checkpoint of the same model."""
    print(f"seed {seed}, {steps} steps")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=128, tie_word_embeddings=True, architectures=["LlamaForCausalLM"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config.dtype = dtype
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    words = [int(word[1:]) for word in passage(64 * 8 * steps, seed + 1).split()]
    for step in range(steps):
        rows = torch.tensor(words[step * 512 : (step + 1) * 512]).view(8, 64)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().to(dtype).contiguous() for name, one in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    _tokenizer(folder)
    return folder
