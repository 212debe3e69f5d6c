"""Makes the goldens of the CLIP text encoder: small random `transformers` models with and without projection, and all their states.

Run: python make.py   (writes the .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import platform
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).parent
SEED = 20301
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "norm" in name else 0.25
            parameter.copy_((parameter if "norm" in name else 0) + scale * torch.randn_like(parameter))


def model(name, seed, kind, **options):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=9, eos_token_id=39,
        bos_token_id=38, pad_token_id=39, **options,
    )
    network = kind(config).eval()
    spread(network)
    tokens = torch.randint(1, 38, (3, 9))
    visible = torch.ones(3, 9, dtype=torch.bool)
    for row, place in enumerate([4, 8, 2]):
        tokens[row, 0], tokens[row, place:], visible[row, place + 1:] = 38, 39, False
    with torch.no_grad():
        # Without a mask, as diffusers' Stable Diffusion calls it.
        output = network(input_ids=tokens, output_hidden_states=True)
        tower = getattr(network, "text_model", network)
        normed = tower.final_layer_norm(output.hidden_states[-2])
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / f"{name}_config.json")
        shutil.copy(Path(folder) / "model.safetensors", HERE / f"{name}_weights.safetensors")
    results = {
        "tokens": tokens,
        "visible": visible,
        "last": output.last_hidden_state,
        "penultimate": output.hidden_states[-2],
        "penultimate_normed": normed,
        "pooled": output.text_embeds if kind is CLIPTextModelWithProjection else output.pooler_output,
    }
    safetensors.torch.save_file({key: value.contiguous() for key, value in results.items()}, HERE / f"{name}_results.safetensors")


def provenance():
    lines = [
        'script = "make.py"',
        f"seed = {SEED}",
        f'python = "{platform.python_version()}"',
        f'torch = "{torch.__version__}"',
        f'transformers = "{transformers.__version__}"',
        f'safetensors = "{safetensors.__version__}"',
        "",
        "[licences]",
        'transformers = "Apache-2.0"',
        'weights = "random, made by this script"',
    ]
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")


model("plain", SEED, CLIPTextModel)
model("projection", SEED + 1, CLIPTextModelWithProjection, hidden_act="gelu", projection_dim=10)
provenance()
