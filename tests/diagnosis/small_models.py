"""Models of a few thousand weights as Hugging Face directories, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

VOCABULARY = 96


def text(seed: int = 5) -> str:
    """Words that go round a ring with a stride of their own, so that a model can learn what comes next."""
    draw = torch.Generator().manual_seed(seed)
    words: list[str] = []
    for _ in range(80):
        at = int(torch.randint(VOCABULARY - 3, (), generator=draw))
        for _ in range(16):
            words.append(f"w{at}")
            at = (at + (3 if at % 2 else 5)) % (VOCABULARY - 3)
    return " ".join(words)


def _write(model: nn.Module, config: LlamaConfig | BertConfig, folder: Path, dtype: torch.dtype) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.detach().to(dtype).contiguous() for name, one in model.named_parameters()}, folder / "model.safetensors")
    config.dtype = dtype
    config.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY - 2)} | {"[UNK]": VOCABULARY - 2, "[MASK]": VOCABULARY - 1}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": VOCABULARY - 1, "content": "[MASK]", "special": True, **flags}]
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]"}))
    return folder


def llama(folder: Path, *, dtype: torch.dtype = torch.bfloat16, steps: int = 0, seed: int = 20261122, tied: bool = True) -> Path:
    """A Llama of 6 blocks; ``steps`` of training on ``text``."""
    print(f"seed {seed}")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"], bos_token_id=0, eos_token_id=0,
        initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    words = torch.tensor([int(word[1:]) for number in range(max(1, steps // 2)) for word in text(100 + number).split()])
    for step in range(steps):
        rows = words[step * 512 : (step + 1) * 512].view(8, 64)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _write(model, config, folder, dtype)


def bert(folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 7) -> Path:
    """A BertForMaskedLM of 3 blocks: norms after the sums, biases everywhere."""
    print(f"seed {seed}")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, architectures=["BertForMaskedLM"], initializer_range=0.1,
    )  # fmt: skip
    return _write(BertForMaskedLM(config), config, folder, dtype)
