"""A folder in which the commands of the pages run: all that they name, as small as it gets."""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig
from PIL import Image

from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.one_pass import OnePassDecoder
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.decoder.vit_decoder import vit_decoder
from metamorph.model import MetaMorph, assemble
from metamorph.model.adapter_files import heads_and_rows, language_sample, write_adapter
from tests.bench.bench_records import write_attention
from tests.pages import ROOT, blocks
from tests.six_families import MIXTURE, write_six_families
from tests.tiny_run import tiny_diffusion, write_language, write_vision

GRID = 8  # as the pages have it
FEATURE_WIDTH = 24  # of the tiny encoder
TOY_WIDTH, TOY_GRID = 96, 4  # of the encoder that the package ships, and of the toy's runs
ONE_PASS_DECODER = "models/decoder_rae"
MODELS = (
    "runs/quickstart/model",
    "runs/quickstart/stages/align/model",
    "runs/mine/model",
    "runs/smollm2/model",
)
RECIPE_MIXTURES = "align", "instruct", "pictures"


def write_page_folder(folder: Path) -> None:
    """Weights where the recipes look for them, what `make quickstart` leaves, `my.yaml` and its
    data of docs/training.md, the prompts of docs/generation.md, the examples of docs/data.md, and
    benchmark results."""
    write_weights(folder / "models")
    parts = folder / "models/Llama-3.1-8B-Instruct", folder / "models/siglip-so400m-patch14-384"
    torch.manual_seed(0)
    model, tokenizer = assemble(*parts, grid=GRID)
    write_lora(folder / "runs/instruct/adapter", model, tokenizer)
    let_draw(model)
    vae, unet, noise_scheduler = tiny_diffusion()
    adapter = FeatureAdapter(FEATURE_WIDTH, 16, unet.config.cross_attention_dim)
    decoder = VisualDecoder(vae, unet, sampler("dpm++", noise_scheduler.config), adapter, 2.0, 2)
    for name in MODELS:
        model.save_pretrained(folder / name, tokenizer)
        decoder.save_pretrained(folder / name / "decoder")
    sizes = {"width": 16, "layers": 1, "heads": 2, "picture_size": 64, "patch_size": 8}
    OnePassDecoder(vit_decoder(FEATURE_WIDTH, **sizes)).save_pretrained(folder / ONE_PASS_DECODER)
    adapter = FeatureAdapter(TOY_WIDTH, 16, unet.config.cross_attention_dim)
    teacher = VisualDecoder(vae, unet, decoder.scheduler, adapter, 2.0, 2, TOY_GRID**2)
    teacher.save_pretrained(folder / "runs/quickstart/stages/decoder/decoder")
    write_data(folder)
    shutil.copy(folder / "my.yaml", folder / "runs/mine/config.yaml")  # a run folder
    for part in ("encoder", "decoder_base"):  # as configs/toy name them in a clone
        assets = Path("metamorph/quickstart/assets") / part
        shutil.copytree(ROOT / assets, folder / assets)
    write_attention(folder / "bench/out")
    write_attention(folder / "bench/before")
    shutil.copy(ROOT / "README.md", folder)


def write_lora(folder: Path, model: MetaMorph, tokenizer) -> None:
    """What a run with LoRA leaves to be passed on, with one adapter."""
    weight = model.language.model.layers[0].self_attn.q_proj.weight
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    adapters = {name.format("A"): weight[:2].detach(), name.format("B"): weight[:, :2].contiguous()}
    heads, sample = heads_and_rows(model), language_sample(model.language)
    write_adapter(folder, adapters, heads, sample, model.config, tokenizer.chat_template)
    LoraConfig(r=2, target_modules=["layers.0.self_attn.q_proj"]).save_pretrained(folder)


@torch.no_grad()
def let_draw(model: MetaMorph) -> None:
    """Every answer of it is one picture: the pages save what it drew."""
    table, head = model.language.model.embed_tokens.weight, model.language.lm_head.weight
    [stop, *_] = model.config.eos_ids
    # One column says how it goes on, and is larger than all that the blocks add to it.
    table[:, 0], table[model.config.image_end_id, 0] = 5, -5
    head[:, 0] = 0
    head[model.config.image_start_id, 0], head[stop, 0] = 5, -5


def write_weights(folder: Path) -> None:
    """Hugging Face folders under the names of real ones."""
    write_language(folder / "Llama-3.1-8B-Instruct")
    write_language(folder / "Qwen3-1.7B", model_type="qwen3")
    for name in ("siglip-so400m-patch14-384", "siglip2-so400m-patch14-384"):
        write_vision(folder / name, patch=8)
    for name, part in zip(("vae", "unet", "scheduler"), tiny_diffusion(), strict=True):
        part.save_pretrained(folder / "stable-diffusion-v1-5" / name)


def write_data(folder: Path) -> None:
    """`my.yaml` and its data, a mixture of all families, and pictures for prompts."""
    page = ROOT / "docs/training.md"
    [my_run], [records] = blocks(page, "yaml"), blocks(page, "json")
    (folder / "my.yaml").write_text(my_run)
    (folder / "data.jsonl").write_text(records)
    (folder / "images").mkdir()
    for record in map(json.loads, records.splitlines()):
        Image.new("RGB", (64, 64), "red").save(folder / "images" / record["image"])
    Image.new("RGB", (64, 64), "green").save(folder / "picture-1.png")
    [prompts, _] = blocks(ROOT / "docs/generation.md", "json")
    (folder / "prompts.jsonl").write_text(prompts)
    write_six_families(folder / "data")
    for name in RECIPE_MIXTURES:
        shutil.copy(MIXTURE, folder / "data" / f"{name}.yaml")
