"""Configuration: one field, one YAML key, one option; everything else is refused by name."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from metamorph.config import DataConfig, RunConfig, TrainingConfig
from metamorph.config.keys import Stage
from metamorph.config.reading import (
    add_config_arguments,
    iter_fields,
    load_config,
    nearest,
    overrides_from_namespace,
    save_config,
    to_yaml,
)
from metamorph.errors import UserError

MINIMAL = "stage: align\noutput: runs/a\n"
CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted({*CONFIGS.glob("**/*.yaml")} - {*CONFIGS.glob("mixtures/*")})


@pytest.fixture
def write(tmp_path):
    def write_text(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def message(path, overrides=None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(stage="align", **keys) -> TrainingConfig:
    return RunConfig(stage, "runs/a", training=TrainingConfig(**keys)).training


def parse(*arguments: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    add_config_arguments(parser)
    return parser.parse_known_args(arguments)


def test_defaults_fill_what_the_file_leaves_out(write):
    assert load_config(write(MINIMAL)) == RunConfig(stage="align", output="runs/a")


def test_file_values_reach_their_fields(write):
    text = MINIMAL + (
        "seed: 7\nresume: true\n"
        "data:\n  source: toy_scenes\n  kinds: {caption: 1, edit: 0.5}\n  shuffle: no\n"
        "training:\n  learning_rate: 1e-4\n  gradient_clip: 2\n"
    )
    loaded = load_config(write(text))
    assert (loaded.seed, loaded.resume) == (7, True)
    assert loaded.data == DataConfig(
        source="toy_scenes", kinds={"caption": 1.0, "edit": 0.5}, shuffle=False
    )
    assert loaded.training == trained(learning_rate=1e-4, gradient_clip=2.0)
    assert type(loaded.training.gradient_clip) is float


def test_an_empty_section_keeps_its_defaults(write):
    assert load_config(write(MINIMAL + "training:\n")).training == trained()


def test_yaml_round_trip(write, tmp_path):
    original = load_config(
        write(MINIMAL),
        {
            "output": "runs/été: 1",
            "model.folder": "2024",
            "data.kinds": {"zoom": 0.25},
            "training.learning_rate": 1e-5,
            "decoder.condition_dropout": "1",
        },
    )
    path = tmp_path / "saved.yaml"
    save_config(original, path)
    assert path.read_text(encoding="utf-8") == to_yaml(original)
    assert load_config(path) == original


@pytest.mark.parametrize(
    ("stage", "coefficient"), [("language", 0), ("align", 0), ("instruct", 1), ("decoder", None)]
)
def test_the_visual_coefficient_follows_the_stage_unless_it_is_said(
    write, tmp_path, stage, coefficient
):
    config = load_config(write(MINIMAL), {"stage": stage})
    assert config.training.visual_coefficient == coefficient
    save_config(config, tmp_path / "saved.yaml")  # as a number
    assert load_config(tmp_path / "saved.yaml") == config
    said = load_config(write(MINIMAL), {"stage": stage, "training.visual_coefficient": "0.5"})
    assert said.training.visual_coefficient == 0.5


def test_a_list_of_names_is_read_from_the_file_or_an_option(write):
    path = write(MINIMAL + "training: {lora_targets: [q, v]}")
    assert load_config(path).training.lora_targets == ["q", "v"]
    option = {"training.lora_targets": "[gate, up]"}
    assert load_config(path, option).training.lora_targets == ["gate", "up"]


def test_two_configs_do_not_share_their_mappings():
    first, second = RunConfig("align", "a"), RunConfig("align", "b")
    first.data.kinds["caption"] = 1.0
    first.training.steps = 5
    assert second.data.kinds == {} and second.training.steps == 1000


def test_overrides_win_over_the_file_and_the_file_over_defaults(write):
    path = write(MINIMAL + "training: {steps: 20, log_every: 3}\n")
    loaded = load_config(path, {"training.steps": "30", "stage": "instruct"})
    assert loaded.training == trained("instruct", steps=30, log_every=3)
    assert loaded.stage == "instruct"


def test_overrides_are_values_or_their_text(write):
    path = write(MINIMAL + "data: {kinds: {edit: 2}}\n")
    text = {"data.kinds": "{caption: 1}", "data.shuffle": "false", "training.beta1": "8e-1"}
    values = {"data.kinds": {"caption": 1}, "data.shuffle": False, "training.beta1": 0.8}
    loaded = load_config(path, text)
    assert loaded == load_config(path, values)
    assert loaded.data.kinds == {"caption": 1.0}


def test_required_keys_may_come_from_overrides(write):
    assert load_config(write(""), {"stage": "decoder", "output": "runs/d"}).stage == "decoder"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {lerning_rate: 1}", ["'training.lerning_rate'", "'training.learning_rate'"]),
        ("learning_rate: 1", ["'learning_rate'", "'training.learning_rate'"]),
        ("training: {row_length: 9}", ["'training.row_length'", "'data.row_length'"]),
        ("trainig: {steps: 1}", ["unknown key 'trainig'", "'training'"]),
        ("stge: align", ["unknown key 'stge'", "'stage'"]),
        ("1: align", ["unknown key '1'"]),
        ("training.steps: 5", ["'training.steps'", "nest"]),
        ("training: 5", ["section 'training'", "got 5", "key: value"]),
        ("training: {steps: many}", ["'training.steps'", "got 'many'", "a whole number"]),
        ("training: {steps: 1e3}", ["'training.steps'", "got '1e3'", "a whole number"]),
        ("training: {steps: 10.0}", ["'training.steps'", "got 10.0", "a whole number"]),
        ("training: {steps: true}", ["'training.steps'", "got True", "a whole number"]),
        ("training: {log_every:}", ["'training.log_every'", "got None", "a whole number"]),
        ("training: {steps: 0}", ["'training.steps'", "got 0", "at least 1"]),
        ("training: {learning_rate: fast}", ["got 'fast'", "a number, above 0"]),
        ("training: {learning_rate: true}", ["got True", "a number"]),
        ("training: {learning_rate: .nan}", ["got nan", "a number"]),
        ("training: {learning_rate: .inf}", ["got inf", "a number"]),
        ("training: {learning_rate: 0}", ["got 0", "above 0"]),
        ("training: {beta2: 1}", ["got 1", "below 1"]),
        ("training: {precision: fp16}", ["got 'fp16'", "one of fp32, bf16, fp8"]),
        ("decoder: {condition_dropout: 1.5}", ["got 1.5", "at least 0, at most 1"]),
        ("decoder: {condition_dropout: -0.5}", ["got -0.5", "at least 0, at most 1"]),
        ("data: {shuffle: 1}", ["'data.shuffle'", "got 1", "true or false"]),
        ("data: {path: 12}", ["'data.path'", "got 12", "text (quote it"]),
        ("data: {kinds: [caption]}", ["'data.kinds'", "a mapping of names to numbers"]),
        ("data: {kinds: {caption: much}}", ["'data.kinds'", "much", "a mapping of names"]),
        ("data: {kinds: {caption: -1}}", ["'data.kinds'", "at least 0"]),
        ("data: {kinds: {1: 1}}", ["'data.kinds'", "a mapping of names"]),
        ("data: {max_pixels: 1, max_pixels: 2}", ["line 3", "'max_pixels' stands twice"]),
        ("data: {max_pixels: [}", ["line 3", "not valid YAML"]),
        ("? [a]\n: b", ["line 3", "not valid YAML"]),
        ("seed: 2020-13-45", ["line 3", "not valid YAML", "'2020-13-45' is not a valid timestamp"]),
        ("data: {samples: [2020-13-45]}", ["line 3", "'2020-13-45' is not a valid timestamp"]),
        ("resume: !!bool maybe", ["line 3", "'maybe' is not a valid bool"]),
        ("seed: !!timestamp today", ["line 3", "'today' is not a valid timestamp"]),
        ("seed: " + "9" * 5000, ["line 3", "999' is not a valid int"]),
        ("seed: " + "[" * 5000, ["nested too deeply"]),
        (f"seed: {2**32}", ["'seed'", "at least 0, at most 4294967295"]),
        ("data: {kinds: 1}", ["such as {question: 1.0}"]),
        ("training: {lora_targets: q}", ["a list of some of q, k, v, o, gate, up, down"]),
        ("training: {lora_targets: [q, w]}", ["got ['q', 'w']", "some of q, k", "such as [q, k]"]),
        ("training: {lora_targets: []}", ["'training.lora_targets'", "got []"]),
        ("training: {lora_dropout: 1}", ["got 1", "at least 0, below 1"]),
        ("training: {gradient_clip: -1}", ["got -1", "at least 0"]),
        ("training: {visual_coefficient: much}", ["got 'much'", "a number, at least 0"]),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_key(write, text, expected):
    path = write(MINIMAL + text + "\n")
    error = message(path)
    assert str(path) in error
    for part in expected:
        assert part in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output: runs/a", "key 'stage' is missing; it needs one of language, align"),
        ("stage: align", "key 'output' is missing; it needs text"),
        ("stage: align\noutput: ''", "key 'output' got ''; it needs text (quote it in YAML), not"),
        ("stage: pretrain\noutput: a", "'stage' got 'pretrain'; it needs one of language, align"),
        ("- stage", "the run file got ['stage']; it needs 'key: value' lines"),
    ],
)
def test_required_keys_and_shape_of_the_file(write, text, expected):
    assert expected in message(write(text))


def test_unreadable_files(tmp_path):
    missing = tmp_path / "missing.yaml"
    assert f"{missing}: cannot read the file" in message(missing)
    assert "cannot read the file" in message(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"stage: \xff\xfe")
    assert f"{binary}: the file is not UTF-8 text" in message(binary)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.stpes", "5", "override: unknown key 'training.stpes'; the nearest is"),
        ("training", {"steps": 5}, "override: unknown key 'training'; the nearest is 'training."),
        ("data.kinds.caption", "1", "the nearest is 'data.kinds'"),
        ("training.steps", "many", "override: key 'training.steps' got 'many'; it needs a whole"),
        ("training.steps", "", "override: key 'training.steps' got ''"),
        ("training.steps", "[", "override: key 'training.steps' got '['"),
        ("seed", "2020-13-45", "override: key 'seed' got '2020-13-45'; it needs a whole number"),
        ("seed", "[" * 5000, "override: key 'seed' got '[[["),
        ("seed", str(2**32), "override: key 'seed' got 4294967296; it needs a whole number"),
        ("training.steps", -1, "got -1; it needs a whole number, at least 1"),
    ],
)
def test_overrides_are_checked_like_the_file(write, key, value, expected):
    assert expected in message(write(MINIMAL), {key: value})


def test_every_key_is_an_option_with_help_and_default():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    shown = " ".join(parser.format_help().split())
    for key, _, default, help_text in iter_fields(RunConfig):
        assert f"--{key} " in shown and help_text in shown
        assert default is not dataclasses.MISSING or key in ("stage", "output")
    assert "training options" in shown and "language|align|instruct|decoder" in shown


def test_iter_fields_gives_types_and_defaults():
    fields = {key: (kind, default) for key, kind, default, _ in iter_fields(RunConfig)}
    assert fields["training.learning_rate"] == (float, 6.93e-5)
    assert fields["data.kinds"] == (dict[str, float], {})
    assert fields["stage"] == (Stage, dataclasses.MISSING)


def test_options_become_overrides(write):
    path = write(MINIMAL)
    namespace, unknown = parse(
        *(str(path), "--training.steps", "12", "--data.kinds={caption: 1}", "--resume"),
        *("--data.shuffle", "false", "--model.folder", "1e3", "--training.weight_decay", "0.1"),
    )
    overrides = overrides_from_namespace(namespace, unknown)
    assert set(overrides) == {
        *("training.steps", "data.kinds", "resume", "data.shuffle", "model.folder"),
        "training.weight_decay",
    }
    loaded = load_config(namespace.config, overrides)
    assert loaded.training == trained(steps=12, weight_decay=0.1)
    assert loaded.data == DataConfig(kinds={"caption": 1.0}, shuffle=False)
    assert loaded.resume and loaded.model.folder == "1e3"


def test_options_not_given_are_not_overrides():
    namespace, unknown = parse("run.yaml")
    assert overrides_from_namespace(namespace, unknown) == {}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--training.lerning_rate",
            "unknown option '--training.lerning_rate'; the nearest is '--training.learning_rate'",
        ),
        ("--training.step=5", "'--training.step'; the nearest is '--training.steps'"),
        ("--learning_rate=5", "the nearest is '--training.learning_rate'"),
        ("--data.kinds.caption=1", "the nearest is '--data.kinds'"),
        ("more", "unexpected argument 'more'"),
    ],
)
def test_unknown_options_name_the_nearest(argument, expected):
    namespace, unknown = parse("run.yaml", argument)
    with pytest.raises(UserError) as caught:
        overrides_from_namespace(namespace, unknown)
    assert expected in str(caught.value)


def test_nearest_is_never_the_key_itself():
    for key, *_ in iter_fields(RunConfig):
        assert nearest(key) != key


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
    load_config(path)
