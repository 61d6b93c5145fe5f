"""The causal transformer beside the GPT-2 of `transformers`: the same weights give the same logits."""

import pytest
import torch

from mezzotint.autoregressive.transformer import TransformerConfig

pytestmark = pytest.mark.oracles
transformers = pytest.importorskip("transformers")

V, N, CLASSES, WIDTH, LAYERS, HEADS = 11, 7, 3, 12, 2, 3
MATRICES = {"attn.c_attn": "qkv", "attn.c_proj": "out", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
NORMS = {"ln_1": "norm1", "ln_2": "norm2"}


@pytest.fixture
def pair(monkeypatch):
    """Ours, and theirs with our weights: their tokens are ours and, after them, the classes.

    (The torchvision of PyPI is compiled against the CUDA build of torch and does not load beside the CPU build.)
    """
    for module in (transformers.utils, transformers.utils.import_utils):
        monkeypatch.setattr(module, "is_torchvision_available", lambda: False)
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    ours = TransformerConfig(WIDTH, LAYERS, HEADS).build(V, N, CLASSES).double().eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = transformers.GPT2Config(
        vocab_size=V + CLASSES, n_positions=N, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        activation_function="gelu", tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).double().eval()
    weights = dict(ours.named_parameters())
    named = {
        "transformer.wte.weight": torch.cat([weights["tokens.weight"], weights["start.weight"]]),
        "transformer.wpe.weight": weights["positions"],
        "transformer.ln_f.weight": weights["norm.weight"],
        "transformer.ln_f.bias": weights["norm.bias"],
        "lm_head.weight": torch.cat([weights["head.weight"], torch.zeros(CLASSES, WIDTH)]),
    }
    for layer in range(LAYERS):
        for name, ours_name in (MATRICES | NORMS).items():
            weight = weights[f"blocks.{layer}.{ours_name}.weight"]
            named[f"transformer.h.{layer}.{name}.weight"] = weight.T if name in MATRICES else weight
            named[f"transformer.h.{layer}.{name}.bias"] = weights[f"blocks.{layer}.{ours_name}.bias"]
    theirs.load_state_dict(named, strict=True)
    return ours, theirs


@torch.no_grad()
def test_the_same_weights_give_the_logits_of_gpt2(truth, pair):
    ours, theirs = pair
    tokens, labels = torch.randint(V, (4, N)), torch.tensor([0, 2, 1, 0])
    seen = torch.cat([V + labels[:, None], tokens[:, :-1]], 1)
    expected = theirs(seen).logits[..., :V]
    error = (ours(tokens, labels) - expected).abs().max()
    truth("transformer prior", "logits, float64", "GPT2LMHeadModel of transformers", error, 2e-15)


@torch.no_grad()
def test_the_same_weights_give_the_logits_of_gpt2_one_token_at_a_time(truth, pair):
    ours, theirs = pair
    tokens, labels = torch.randint(V, (2, N)), torch.tensor([2, 1])
    cache, given, past, error = ours.begin(2), labels, None, 0.0
    for place in range(N):
        seen = (V + given if place == 0 else given)[:, None]
        answer = theirs(seen, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        error = max(error, (ours.step(cache, given) - answer.logits[:, -1, :V]).abs().max().item())
        given = tokens[:, place]
    truth("transformer prior", "logits from the cache, float64", "GPT2LMHeadModel with its cache", error, 2e-15)
