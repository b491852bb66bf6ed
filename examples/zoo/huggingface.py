"""GPT-2, BERT, Llama, T5 and ViT as transformers defines them, small and with random weights: nothing is downloaded.

Dropout is each library's default. GPT-2, BERT and T5 get labels and return the loss with the logits; Llama
and ViT return logits, so the loss is outside. `use_cache` is False because a key-value cache has no use in training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Keywords = dict[str, Tensor]


def gpt2(
    *,
    batch: int = 2,
    length: int = 64,
    vocabulary: int = 1000,
    width: int = 128,
    heads: int = 4,
    layers: int = 4,
    seed: int = 0,
) -> tuple[nn.Module, tuple[()], Keywords]:
    """Radford et al.: Language models are unsupervised multitask learners, 2019. The head is tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # the class name lacks it, and transformers would log a guess
        tokens = torch.randint(vocabulary, (batch, length))
        return model, (), {"input_ids": tokens, "labels": tokens.clone()}


def bert(
    *,
    batch: int = 2,
    length: int = 64,
    vocabulary: int = 1000,
    width: int = 128,
    heads: int = 4,
    layers: int = 4,
    classes: int = 3,
    seed: int = 0,
) -> tuple[nn.Module, tuple[()], Keywords]:
    """Devlin et al.: Pre-training of deep bidirectional transformers, 2019. A classifier, with padded rows."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = BertForSequenceClassification(config)
        tokens = torch.randint(1, vocabulary, (batch, length))
        mask = (torch.arange(length) < torch.randint(length // 2, length, (batch, 1))).long()
        labels = torch.randint(classes, (batch,))
        return model, (), {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def llama(
    *,
    batch: int = 2,
    length: int = 64,
    vocabulary: int = 1000,
    width: int = 128,
    heads: int = 4,
    groups: int = 2,
    layers: int = 4,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor]]:
    """Touvron et al.: Open and efficient foundation language models, 2023. Rotary positions, grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=3 * width,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config), (torch.randint(vocabulary, (batch, length)),)


def t5(
    *,
    batch: int = 2,
    length: int = 64,
    vocabulary: int = 1000,
    width: int = 128,
    heads: int = 4,
    layers: int = 2,
    seed: int = 0,
) -> tuple[nn.Module, tuple[()], Keywords]:
    """Raffel et al.: Exploring the limits of transfer learning, 2020. Encoder and decoder, relative position bias."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        decoder_start_token_id=0,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        tokens, labels = torch.randint(1, vocabulary, (2, batch, length))
        return model, (), {"input_ids": tokens.clone(), "labels": labels.clone()}


def vit(
    *,
    batch: int = 2,
    size: int = 64,
    patch: int = 8,
    width: int = 128,
    heads: int = 4,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor]]:
    """Dosovitskiy et al.: An image is worth 16x16 words, 2021."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ViTForImageClassification(config), (torch.randn(batch, 3, size, size),)
