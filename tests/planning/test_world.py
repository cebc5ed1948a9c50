"""Plans of the shipped recipes: on a CPU, without weights, data or other processes."""

import re
from pathlib import Path

import pytest
import torch

from metamorph.cli.command import main
from metamorph.config.reading import load_config, save_config
from metamorph.model.outline import outline
from metamorph.planning.assumed_samples import FAMILIES, assumed_row
from tests.tiny_run import tiny_config

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = {"8b": 8_030_261_248, "1b": 1_235_814_400}  # as published, before two rows are added
HIDDEN = {"8b": 4096, "1b": 2048}
TABLES = {"8b": 2, "1b": 1}  # of tokens: Llama 3.2 1B has one for input and output
SIGLIP = 428_225_600
UNET, VAE = 859_520_964, 83_653_863


def plan(capsys, config: Path | str, *options: str) -> str:
    assert main(["train", str(config), "--dry-run", *options]) == 0
    return capsys.readouterr().out


def table(text: str) -> dict[str, tuple[int, int]]:
    """Part: (trained, frozen)."""
    rows = text.partition("parameters ")[2].partition("\n\n")[0]
    cells = re.findall(r"^  ([a-z ]+?) +([\d,]+) +([\d,]+)$", rows, re.MULTILINE)
    return {name: tuple(int(n.replace(",", "")) for n in counts) for name, *counts in cells}


def figure(text: str, name: str) -> float:
    """The number after a name, in whatever table."""
    return float(re.search(rf"^  {re.escape(name)} +([\d.]+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize(
    ("size", "stage", "gpus"),
    [("8b", "align", 32), ("8b", "instruct", 256), ("1b", "align", 8), ("1b", "instruct", 8)],
)
def test_recipes_of_the_language_model(capsys, size, stage, gpus):
    """On any machine: a dry run plans for the GPUs that the file is cut for, and says so."""
    recipe = CONFIGS / f"metamorph_{size}" / f"{stage}.yaml"
    text = plan(capsys, recipe, "--gpu-type", "h200")
    assert text.startswith(f"planned for {gpus} GPUs, which this run file is cut for (parallel.gp")
    assert f"plan of stage {stage} on {gpus} x H200" in text
    hidden, width = HIDDEN[size], 1152
    language = LLAMA[size] + TABLES[size] * 2 * hidden
    projector = width * hidden + hidden + hidden * hidden + hidden
    head = hidden * hidden + hidden + hidden * width + width
    counts = table(text)
    assert {name: sum(pair) for name, pair in counts.items()} == {
        "language": language, "projector": projector, "vision head": head, "encoder": SIGLIP
    }  # fmt: skip
    input_rows = 128_258 * hidden
    trained = {"instruct": (language, head), "align": (input_rows, 0)}[stage]
    assert (counts["language"][0], counts["vision head"][0]) == trained
    assert counts["projector"][1] == counts["encoder"][0] == 0
    assert ": fits\n" in text and "assumptions:\n" in text and "nothing here was measured" in text


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_recipes_of_qwen3(capsys, stage):
    """Its 1.7 billion weights by hand: one table for input and output, a norm for heads of queries
    and one for those of keys; and two rows, for no tokenizer says which are free."""
    text = plan(capsys, CONFIGS / "qwen3" / f"{stage}.yaml")
    assert text.startswith("planned for 8 GPUs") and f"plan of stage {stage} on 8 x H100" in text
    attention = 2 * 2048 * 2048 + 2 * 2048 * 1024 + 2 * 128
    blocks = 28 * (attention + 3 * 2048 * 6144 + 2 * 2048) + 2048
    counts = table(text)
    assert sum(counts["language"]) == 151_938 * 2048 + blocks
    assert counts["language"][0] == {"align": 151_938 * 2048}.get(stage, sum(counts["language"]))
    assert counts["encoder"] == (0, SIGLIP)
    assert ": fits\n" in text


def test_the_papers_run_in_numbers(capsys):
    """Sizes of 8B on 256 GPUs in groups of 8, by hand: fp32 weights and AdamW."""
    recipe = CONFIGS / "metamorph_8b" / "instruct.yaml"
    text = plan(capsys, recipe, "--world-size", "256", "--gpu-type", "h100")
    trained = LLAMA["8b"] + 4 * 4096 + 21_504_000 + 21_501_056
    weights = 4 * (trained / 8 + SIGLIP)
    assert figure(text, "weights") == pytest.approx(weights / 2**30, abs=1e-3)
    assert figure(text, "optimizer states") == pytest.approx(trained / 2**30, abs=1e-3)
    assert figure(text, "summing gradients") == pytest.approx(4 * 7 / 8 * trained / 1e9, rel=1e-3)
    rate = float(re.search(r"predicted ([\d.]+) samples/s/GPU", text)[1])
    step = figure(text, "step")
    _, samples = assumed_row("instruct", 4096, 64, "causal")
    assert rate == pytest.approx(samples / step, rel=0.01)
    assert "at least 0.73 samples/s/GPU" in text
    assert rate > 0.73


def test_weights_that_are_gathered_in_8_bits_are_half_as_many_bytes(capsys):
    recipe = CONFIGS / "metamorph_8b" / "instruct.yaml"
    fp8 = ["--training.precision", "fp8", "--training.fp8_recipe", "tensorwise"]
    wide = plan(capsys, recipe, *fp8)
    narrow = plan(capsys, recipe, *fp8, "--training.fp8_all_gather", "true")
    block = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14_336
    sent, held = (
        figure(wide, name) - figure(narrow, name)
        for name in ("gathering weights", "gathered weights")
    )
    assert sent == pytest.approx(2 * 7 / 8 * 32 * block / 1e9, rel=1e-3)
    assert held == pytest.approx(2 * block / 2**30, abs=2e-3)


@pytest.mark.parametrize(("size", "gpus"), [("8b", 88), ("1b", 8)])
def test_recipes_of_the_decoder(capsys, size, gpus):
    recipe = CONFIGS / f"metamorph_{size}" / "decoder.yaml"
    text = plan(capsys, recipe)
    assert text.startswith(f"planned for {gpus} GPUs") and f"decoder on {gpus} x H100" in text
    adapter = 1152 * 2048 + 2048 + 2 * 2048 + 2048 * 768 + 768 + 2 * 768
    assert table(text) == {
        "encoder": (0, SIGLIP), "vae": (0, VAE), "unet": (UNET, 0), "adapter": (adapter, 0)
    }  # fmt: skip
    assert figure(text, "optimizer states") == pytest.approx(8 * (UNET + adapter) / 2**30, abs=1e-3)


def test_the_recipe_of_the_one_pass_decoder(capsys):
    """A ViT-L by hand, with its one learned row; the critic; and an encoder that looks again at
    drawings, wherever the features of pictures come from."""
    recipe = CONFIGS / "metamorph_8b" / "decoder_rae.yaml"
    text = plan(capsys, recipe, "--parallel.shard", "0", "--data.features", "features")
    assert "decoder on 8 x H100 SXM: 1 copies of the weights, each shared by 8" in text
    vit = 1152 * 1024 + 2 * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1024 * 768 + 768
    critic = 1152 * 1152 + 2 * 1152 + 1
    assert table(text) == {"encoder": (0, SIGLIP), "vit": (vit, 0), "critic": (critic, 0)}
    assert figure(text, "optimizer states") == pytest.approx((vit + critic) / 2**30, abs=1e-3)
    # A multiply and an add for each weight of a block and each of 257 rows, and attention.
    products = 2 * 24 * (12 * 1024**2 * 257 + 2 * 257**2 * 1024)
    operations = text.partition("teraflops of a picture")[2]
    assert figure(operations, "vit") == pytest.approx(products / 1e12, rel=0.01)
    assert figure(operations, "encoder, of drawings") > 0 and "  encoder  " not in operations


def test_the_keys_of_a_decoder_at_scale_are_planned_with(capsys):
    """Shards, 8-bit moments, adapters, parts of a step: what each leaves on a GPU."""
    recipe, adapter = CONFIGS / "metamorph_8b" / "decoder.yaml", 1152 * 2048 + 2048 * 768 + 9728
    options = ["--parallel.shard", "0", "--decoder.accumulate", "3", "--world-size", "8"]
    text = plan(capsys, recipe, *options)
    assert "8 x H100 SXM: 1 copies of the weights, each shared by 8" in text
    assert "264 pictures on each, 88 at a time" in text
    shards = 8 * (UNET + adapter) / 8 / 2**30
    assert figure(text, "optimizer states") == pytest.approx(shards, rel=0.01)
    options = ["--training.lora_rank", "4", "--training.optimizer", "adamw8bit"]
    options += ["--training.activation_checkpointing", "full", "--world-size", "1"]
    small = plan(capsys, recipe, *options)
    trained = table(small)["unet"][0] + adapter
    assert 0 < table(small)["unet"][0] < 0.01 * UNET and table(small)["unet"][1] == UNET
    assert figure(small, "optimizer states") == pytest.approx(2 * trained / 2**30, abs=2e-3)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "metamorph_8b/align",
            ["--world-size", "256"],
            "rows_per_step: 32 cannot be shared evenly by 256",
        ),
        (
            "metamorph_8b/decoder",
            ["--world-size", "5"],
            "batch_size: 2112 cannot be shared evenly by 5",
        ),
        (
            "metamorph_8b/decoder_rae",
            ["--decoder.patch_size", "64"],
            "patches of 64 make 4 x 4 of a picture of 256 pixels, fewer than its 8 x 8 tokens",
        ),
        (
            "metamorph_1b/align",
            ["--world-size", "8", "--gpu-type", "a100", "--training.precision", "fp8"],
            "A100 SXM 80 GB has no fp8",
        ),
        (
            "metamorph_1b/align",
            ["--world-size", "8", "--model.language", "models/mine"],
            "models/mine is not there, and 'mine' is no model of known size",
        ),
        ("metamorph_1b/align", ["--world-size", "8", "--parallel.shard", "3"], "groups of 3"),
    ],
)
def test_what_cannot_run_is_not_planned(capsys, recipe, options, message):
    assert main(["train", str(CONFIGS / f"{recipe}.yaml"), "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err


def test_another_number_of_gpus_may_be_asked_for(capsys):
    recipe = CONFIGS / "metamorph_1b" / "instruct.yaml"
    text = plan(capsys, recipe, "--world-size", "4")
    assert text.startswith("plan of stage instruct on 4 x") and "cut for" not in text
    assert plan(capsys, recipe, "--parallel.gpus", "16").startswith("planned for 16 GPUs")
    options = ["--parallel.gpus", "0", "--training.compile", "false"]
    assert main(["train", str(recipe), "--dry-run", *options]) == 2  # for it opens the model
    assert "runs/metamorph_1b/align/model" in capsys.readouterr().err


def test_a_world_size_is_for_plans_only(capsys):
    assert main(["train", str(CONFIGS / "toy" / "align.yaml"), "--world-size", "2"]) == 2
    assert "--world-size: it plans, so it needs --dry-run" in capsys.readouterr().err


def test_data_that_is_there_is_looked_at(folder, capsys):
    """And so are sizes; one process holds everything and sends nothing."""
    save_config(tiny_config(folder, "instruct"), folder / "run.yaml")
    text = plan(capsys, folder / "run.yaml", "--world-size", "1")
    assert "as in the first 1 rows of the data" in text and "assumed, for the data" not in text
    assert figure(text, "gathering weights") == 0
    everything = sum(map(sum, table(text).values()))
    assert figure(text, "weights") == pytest.approx(4 * everything / 2**30, abs=5e-4)


def test_cached_features_need_no_encoder(capsys):
    recipe = CONFIGS / "metamorph_1b" / "instruct.yaml"
    live = plan(capsys, recipe, "--world-size", "8")
    cached = plan(capsys, recipe, "--world-size", "8", "--data.features", "features")
    assert figure(live, "encoder, apart") > 100 and figure(cached, "encoder, apart") == 0
    assert figure(cached, "step") < figure(live, "step")


def test_an_outline_has_the_sizes_of_the_folders(folder):
    """As the model that training opens, token rows of pictures included."""
    from metamorph.model.opening import open_model

    config = tiny_config(folder, "instruct")
    real, _ = open_model(config)
    outlined, sources = outline(config.model)
    shapes, expected = (
        {name: p.shape for name, p in model.named_parameters()} for model in (outlined, real)
    )
    assert shapes == expected and all(p.is_meta for p in outlined.parameters())
    assert sources == [
        f"sizes of model.language, {folder / 'llama'}",
        f"sizes of model.vision, {folder / 'siglip'}",
    ]
    real.save_pretrained(folder / "joined")
    config.model.folder = str(folder / "joined")
    joined, [source] = outline(config.model)
    assert {name: p.shape for name, p in joined.named_parameters()} == expected
    assert source == f"sizes of model.folder, {folder / 'joined'}"


@pytest.mark.parametrize("stage", FAMILIES)
def test_an_assumed_row_is_full(stage):
    work, samples = assumed_row(stage, 4096, 64, "causal")
    assert work.tokens == pytest.approx(4096, abs=1)
    assert samples > 1 and 0 < work.text_targets < work.tokens
    visual = work.visual_targets + work.images
    assert (visual > 0) == (stage != "language") and work.visual_targets <= 64 * work.images


def test_the_papers_rates_follow_the_square_root_rule():
    """4e-5 at 512 samples gives 4.90e-5 at 768 and 6.93e-5 at 1536."""
    rates = {
        stage: load_config(CONFIGS / "metamorph_8b" / f"{stage}.yaml").training.learning_rate
        for stage in ("align", "instruct")
    }
    assert rates["align"] == pytest.approx(4e-5 * (768 / 512) ** 0.5, rel=1e-3)
    assert rates["instruct"] == pytest.approx(4e-5 * (1536 / 512) ** 0.5, rel=1e-3)


def test_plans_leave_no_process_group():
    assert not torch.distributed.is_initialized()  # plans leave nothing behind
