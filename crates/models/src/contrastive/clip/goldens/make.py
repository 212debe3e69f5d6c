"""Makes the goldens of CLIP: small random models of `transformers` and `open_clip`, their inputs, outputs, loss and gradients.

Run: python make.py   (writes the .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import platform
from pathlib import Path

import open_clip
import safetensors.torch
import torch
import transformers
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
SEED = 20260
torch.set_num_threads(1)

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(2.9)
            elif "norm" in name or "ln_" in name:
                parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.25 * torch.randn_like(parameter))


def pictures(count, size):
    """[-1, 1], channels first, as ours are after a permutation."""
    return torch.rand(count, 3, size, size) * 2 - 1


def normalised(x):
    return ((x + 1) / 2 - MEAN) / DEVIATION


def hugging_face():
    torch.manual_seed(SEED)
    config = CLIPConfig(
        text_config=dict(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=9, eos_token_id=39,
            bos_token_id=38, pad_token_id=0,
        ),
        vision_config=dict(
            hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4, hidden_act="gelu",
        ),
        projection_dim=10,
    )
    model = CLIPModel(config).eval()
    spread(model)
    x = pictures(3, 12)
    end = torch.tensor([4, 8, 2])
    tokens = torch.randint(1, 38, (3, 9))
    for row, place in enumerate(end):
        tokens[row, place] = 39
        tokens[row, place + 1:] = 0
    output = model(input_ids=tokens, pixel_values=normalised(x), return_loss=True)
    output.loss.backward()
    model.save_pretrained(HERE, safe_serialization=True)
    (HERE / "model.safetensors").unlink()
    # Files of older versions of transformers hold these buffers too.
    buffers = {"text_model.embeddings.position_ids": torch.arange(9)[None], "vision_model.embeddings.position_ids": torch.arange(10)[None]}
    safetensors.torch.save_file(model.state_dict() | buffers, HERE / "hugging_face_weights.safetensors")
    (HERE / "config.json").rename(HERE / "hugging_face_config.json")
    results = {
        "pictures": x.permute(0, 2, 3, 1).contiguous(),
        "text_tokens": tokens,
        "end": end,
        "image_embeddings": output.image_embeds,
        "text_embeddings": output.text_embeds,
        "logits": output.logits_per_image.contiguous(),
        "loss": output.loss.reshape(1),
    }
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    safetensors.torch.save_file({name: value.detach() for name, value in results.items()}, HERE / "hugging_face_results.safetensors")
    safetensors.torch.save_file(gradients, HERE / "hugging_face_gradients.safetensors")


def open_ai():
    """`open_clip`'s CLIP class has the names and layout of OpenAI's files."""
    torch.manual_seed(SEED + 1)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=4, image_size=8, mlp_ratio=4.0)
    text = CLIPTextCfg(context_length=6, vocab_size=20, width=64, heads=1, layers=1)
    model = open_clip.model.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    spread(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    x = pictures(2, 8)
    tokens = torch.randint(1, 19, (2, 6))
    tokens[0, 3], tokens[0, 4:], tokens[1, 5] = 19, 0, 19
    with torch.no_grad():
        image = model.encode_image(normalised(x), normalize=True)
        words = model.encode_text(tokens, normalize=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}
    weights |= {"input_resolution": torch.tensor(8.0), "context_length": torch.tensor(6.0), "vocab_size": torch.tensor(20.0)}
    safetensors.torch.save_file(weights, HERE / "open_ai_weights.safetensors")
    results = {
        "pictures": x.permute(0, 2, 3, 1).contiguous(),
        "text_tokens": tokens,
        "end": torch.tensor([3, 5]),
        "image_embeddings": image,
        "text_embeddings": words,
    }
    safetensors.torch.save_file(results, HERE / "open_ai_results.safetensors")


def provenance():
    lines = [
        'script = "make.py"',
        f"seed = {SEED}",
        f'python = "{platform.python_version()}"',
        f'torch = "{torch.__version__}"',
        f'transformers = "{transformers.__version__}"',
        f'open_clip_torch = "{open_clip.__version__}"',
        f'safetensors = "{safetensors.__version__}"',
        "",
        "[licences]",
        'transformers = "Apache-2.0"',
        'open_clip_torch = "MIT"',
        'weights = "random, made by this script"',
    ]
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    hugging_face()
    open_ai()
    provenance()
