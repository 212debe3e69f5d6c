"""Makes the goldens of dalle_bart: small random models of `min_dalle` and `transformers`, their inputs, outputs, loss, gradients and greedy tokens.

Run: python make.py   (writes the .pt, .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import safetensors.torch
import torch
import transformers
from min_dalle.models import DalleBartDecoder, DalleBartEncoder
from transformers import BartConfig, BartForConditionalGeneration

HERE = Path(__file__).parent
SEED = 20267
torch.set_num_threads(1)

# Norms that a linear map follows: the published files of DALL-E mini and mega hold a bias and no scale for them.
UNSCALED = ("pre_self_attn_layer_norm.weight", "pre_encoder_attn_layer_norm.weight", "glu.ln0.weight", "glu.ln1.weight", "final_ln.weight")


def spread(model, linear=0.25, table=1.0):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle; all of them exact in half precision."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln" in name or "final_ln" in name:
                value = parameter + 0.2 * torch.randn_like(parameter)
            else:
                value = (table if "embed" in name or "shared" in name else linear) * torch.randn_like(parameter)
            parameter.copy_(value.half().float())


# DALL-E mini and mega, in the layout of min-dalle's encoder.pt and decoder.pt. 96 codes, the start token, three more entries to round the table up.
CODES, START, TABLE = 96, 96, 100
TEXT, WIDTH, HEADS, LAYERS, MIDDLE = 40, 32, 2, 2, 44


def dalle_models(seed):
    torch.manual_seed(seed)
    common = dict(embed_count=WIDTH, attention_head_count=HEADS, glu_embed_count=MIDDLE, layer_count=LAYERS, device="cpu")
    encoder = DalleBartEncoder(text_vocab_count=TEXT, text_token_count=64, **common).eval()
    decoder = DalleBartDecoder(image_vocab_count=TABLE - 1, **common).eval()
    for model in (encoder, decoder):
        spread(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(UNSCALED):
                    parameter.fill_(1)
    return encoder, decoder


def dalle_captions():
    """Row 0 is the empty caption, row 1 a caption of 9 tokens; 0 starts, 2 ends, 1 pads, as in min_dalle.py."""
    tokens = torch.ones(2, 64, dtype=torch.long)
    tokens[0, :2] = torch.tensor([0, 2])
    tokens[1, :9] = torch.tensor([0, 17, 5, 33, 39, 8, 8, 21, 2])
    return tokens


def dalle_teacher_forced(decoder, tokens, memory, image_tokens):
    """min-dalle feeds whole prefixes when it is given more than one position; its decoder runs both rows on the same image tokens."""
    count = image_tokens.shape[1]
    previous = torch.cat([torch.full((1, 1), START), image_tokens[:, :-1]], 1)
    state = torch.zeros(LAYERS, 4, 256, WIDTH)
    logits, _ = decoder.forward(tokens.not_equal(1)[:, None, None, :], memory, state, previous, torch.arange(count))
    return logits[:, :, :CODES]


@torch.no_grad()
def dalle_greedy(decoder, tokens, memory, guidance_scale):
    """256 greedy tokens through min-dalle's own cache; also the smallest lead of a winner over the second."""
    state = torch.zeros(LAYERS, 4, 256, WIDTH)
    previous, drawn, lead = torch.full((1, 1), START), [], float("inf")
    for position in range(256):
        logits, state = decoder.forward(tokens.not_equal(1)[:, None, None, :], memory, state, previous, torch.tensor([position]))
        null, conditional = logits[:, -1, :CODES]
        logits = null * (1 - guidance_scale) + conditional * guidance_scale
        best = logits.topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        previous = best.indices[:1][None]
        drawn.append(best.indices[0])
    return torch.stack(drawn), lead


def dalle():
    tokens = dalle_captions()
    for seed in range(SEED, SEED + 200):
        encoder, decoder = dalle_models(seed)
        with torch.no_grad():
            memory = encoder.forward(tokens)
        greedy, lead = dalle_greedy(decoder, tokens, memory, 1.0)
        guided, guided_lead = dalle_greedy(decoder, tokens, memory, 3.0)
        # A lively picture, and no choice so close that rounding could turn it.
        if min(lead, guided_lead) > 3e-3 and min(greedy.unique().numel(), guided.unique().numel()) > 40:
            break
    else:
        raise SystemExit("no seed gives a clear greedy sequence")
    print(f"dalle: seed {seed}, leads {lead:.4f} {guided_lead:.4f}, distinct {greedy.unique().numel()} {guided.unique().numel()}")
    torch.manual_seed(seed)
    image_tokens = torch.randint(0, CODES, (1, 24))
    for name, model in (("encoder", encoder), ("decoder", decoder)):
        weights = {key: value.half() for key, value in model.state_dict().items() if not key.endswith(UNSCALED)}
        torch.save(weights, HERE / f"min_dalle_{name}.pt")
    torch.set_grad_enabled(True)  # importing min_dalle turned it off
    memory = encoder.forward(tokens)
    logits = dalle_teacher_forced(decoder, tokens, memory, image_tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), image_tokens.repeat(2, 1).flatten())
    loss.backward()
    parameters = [(f"{side}.{key}", value) for side, model in (("encoder", encoder), ("decoder", decoder)) for key, value in model.named_parameters()]
    safetensors.torch.save_file({key: value.grad for key, value in parameters}, HERE / "min_dalle_gradients.safetensors")
    results = {
        "text_tokens": tokens,
        "visible": tokens.not_equal(1),
        "memory": memory.detach(),
        "image_tokens": image_tokens,
        "logits": logits.detach().contiguous(),
        "loss": loss.detach().reshape(1),
        "greedy": greedy,
        "greedy_guided": guided,
    }
    safetensors.torch.save_file(results, HERE / "min_dalle_results.safetensors")
    return seed


def bart(name, **config):
    """A small BartForConditionalGeneration with its loss and all gradients."""
    torch.manual_seed(SEED)
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=24, max_position_embeddings=18, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=28, **config)
    ).eval()
    spread(model, table=0.5)
    with torch.no_grad():
        model.final_logits_bias.copy_((0.3 * torch.randn_like(model.final_logits_bias)).half().float())
    tokens = torch.randint(3, 50, (2, 11))
    visible = torch.ones(2, 11, dtype=torch.bool)
    visible[1, 7:] = False
    tokens[~visible] = 1
    labels = torch.randint(3, 50, (2, 9))  # no padding token: torch stops its gradient, which only matters to text
    memory = model.model.encoder(tokens, attention_mask=visible).last_hidden_state
    output = model(tokens, attention_mask=visible, labels=labels)
    output.loss.backward()
    smoothed = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    model.save_pretrained(HERE)
    (HERE / "model.safetensors").rename(HERE / f"{name}_weights.safetensors")
    (HERE / "config.json").rename(HERE / f"{name}_config.json")
    (HERE / "generation_config.json").unlink(missing_ok=True)
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    safetensors.torch.save_file(gradients, HERE / f"{name}_gradients.safetensors")
    results = {
        "text_tokens": tokens,
        "visible": visible,
        "memory": memory.detach(),
        "image_tokens": labels,
        "logits": output.logits.detach(),
        "loss": output.loss.detach().reshape(1),
        "smoothed_loss": smoothed.detach().reshape(1),
    }
    safetensors.torch.save_file(results, HERE / f"{name}_results.safetensors")


if __name__ == "__main__":
    dalle_seed = dalle()
    bart("bart", scale_embedding=False, tie_word_embeddings=True)
    bart("bart_untied", scale_embedding=True, tie_word_embeddings=False)
    (HERE / "PROVENANCE.toml").write_text(f'''script = "make.py"
seed = {SEED}
min_dalle_seed = {dalle_seed}
python = "{platform.python_version()}"
torch = "{torch.__version__}"
min_dalle = "{importlib.metadata.version('min-dalle')}"
transformers = "{transformers.__version__}"
safetensors = "{safetensors.__version__}"

[licences]
min_dalle = "MIT"
transformers = "Apache-2.0"
weights = "random, made by this script"
''')
