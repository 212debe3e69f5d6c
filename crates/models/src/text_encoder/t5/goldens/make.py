"""Makes the goldens of the T5 encoder: small random models of `transformers`, version 1.0 (inside a whole T5) and 1.1, their states, and the buckets of distances.

Run: python make.py   (writes the .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import platform
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).parent
SEED = 20291
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name or "shared" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)


def texts():
    """Long enough for the wide buckets; the padding differs."""
    tokens = torch.randint(2, 40, (2, 30))
    visible = torch.ones(2, 30, dtype=torch.bool)
    tokens[0, 17], tokens[0, 18:], visible[0, 18:] = 1, 0, False
    tokens[1, 29] = 1
    return tokens, visible


def model(name, seed, whole, **options):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=6, d_ff=20, num_layers=3, num_heads=2, relative_attention_num_buckets=8, relative_attention_max_distance=16,
        tie_word_embeddings=whole, **options,
    )
    network = (T5ForConditionalGeneration if whole else T5EncoderModel)(config).eval()
    spread(network)
    tokens, visible = texts()
    with torch.no_grad():
        states = network.get_encoder()(input_ids=tokens, attention_mask=visible.long()).last_hidden_state
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / f"{name}_config.json")
        shutil.copy(Path(folder) / "model.safetensors", HERE / f"{name}_weights.safetensors")
    safetensors.torch.save_file({"tokens": tokens, "visible": visible, "states": states}, HERE / f"{name}_results.safetensors")


def buckets():
    distances = torch.arange(-300, 301)
    published = T5Attention._relative_position_bucket(distances, bidirectional=True, num_buckets=32, max_distance=128)
    small = T5Attention._relative_position_bucket(distances, bidirectional=True, num_buckets=8, max_distance=16)
    safetensors.torch.save_file({"distances": distances, "published": published, "small": small}, HERE / "buckets.safetensors")


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


model("version_1_0", SEED, True)
model("version_1_1", SEED + 1, False, feed_forward_proj="gated-gelu")
buckets()
provenance()
