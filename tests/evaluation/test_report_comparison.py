"""Reports are compared sample by sample, or refused in a sentence."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from metamorph.cli.command import main
from metamorph.errors import UserError
from metamorph.evaluation.page import in_text
from metamorph.evaluation.report_comparison import compare

RIGHT = [True] * 6 + [False] * 2
LATER = [True, *RIGHT[1:6], True, True]


def sample(number: int, **scores) -> dict:
    return {"id": f"s{number}", "request": f"What is {number}?", "scores": scores}


def report(right=RIGHT, **changes) -> dict:
    questions = [sample(number, right=value) for number, value in enumerate(right)]
    cosines = [sample(number, cosine=0.5 + 0.1 * number) for number in range(3)]
    return {
        "kind": "models", "seed": 0, "wording": "toy",
        "suites": {"questions": {"samples": questions}, "cosine": {"samples": cosines}},
    } | changes  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(content: dict | str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def said_of(*reports) -> str:
    """The comparison as a terminal shows it."""
    tables, notes = compare(*reports)
    return "\n".join([in_text(tables), *notes])


def test_what_differs_stands_beside_how_sure_that_is(written):
    first, second = written(report()), written(report(LATER))
    head, questions, cosine = said_of([first], [second]).splitlines()
    assert head.split() == "suite measure samples clusters first second second - first p".split()
    assert questions.split()[:6] == ["questions", "right", "8", "8", "75.0%", "100.0%"]
    assert "+25.0% (+0.0% to" in questions
    assert questions.split()[-1] == "0.5"  # two discordant, both for the second: 2 / 4
    assert cosine.split() == ["cosine", "cosine", "3", "3", "0.600", "0.600", "+0.000",
                              "(+0.000", "to", "+0.000)"]  # fmt: skip


def test_only_common_samples_are_compared_and_a_note_says_so(written):
    said = said_of([written(report())], [written(report(RIGHT[:5]))])
    assert said.splitlines()[-1] == "questions: compared on the 5 of 8 samples that all have"


def test_a_suite_of_which_a_model_has_no_sample_is_left_out_and_a_note_says_so(written):
    empty = report()
    empty["suites"]["cosine"]["samples"] = []
    whole, without = written(report()), written(empty)
    for first, second in ((whole, without), (without, whole), (without, without)):
        _, questions, note = said_of([first], [second]).splitlines()
        assert questions.startswith("questions")
        assert note == f"cosine: not compared, {without} has no sample of it"


def test_a_measure_of_some_samples_is_compared_on_those(written):
    mixed = report()
    mixed["suites"]["questions"]["samples"][0]["scores"]["place"] = True
    path = written(mixed)
    lines = [line.split()[:3] for line in said_of([path], [path]).splitlines()]
    assert ["questions", "place", "1"] in lines and ["questions", "right", "8"] in lines


def test_samples_of_one_cluster_are_one_pair(written):
    """That many captions of one scene are drawn right is no more evidence than that one is."""

    def drawn(right: list[bool]) -> Path:
        clusters = ["circle"] * (len(right) - 1) + ["cross"]
        samples = [
            sample(number, right=value) | {"cluster": cluster}
            for number, (value, cluster) in enumerate(zip(right, clusters, strict=True))
        ]
        return written(report(suites={"captions": {"samples": samples}}))

    _, line = said_of([drawn([False] * 9 + [True])], [drawn([True] * 10)]).splitlines()
    assert line.split()[2:6] == ["10", "2", "10.0%", "100.0%"]  # means are of all samples
    assert line.split()[-1] == "1"  # one cluster differs, to either side
    assert "(+0.0% to +100.0%)" in line


def test_several_trainings_are_compared_by_their_means(written):
    before = [written(report()) for _ in range(2)]
    after = [written(report(LATER)), written(report(LATER))]
    said = said_of(before, after, ["questions"]).splitlines()
    assert said[1].split()[4:6] == ["75.0%", "100.0%"] and said[1].endswith(")")  # no p
    assert said[-1].startswith("first is the mean of 2 trainings, second of 2")


OTHER_REQUEST = report()
OTHER_REQUEST["suites"]["questions"]["samples"][3]["request"] = "Who is 3?"
TWICE = report()
TWICE["suites"]["questions"]["samples"].append(sample(0, right=True))
NO_SCORES = report(suites={"questions": {"samples": [{"id": "s0", "request": "?"}]}})
OTHER_ANSWER = report()
OTHER_ANSWER["suites"]["questions"]["samples"][3]["expected"] = "blue"
FEWER = report(suites={"questions": report()["suites"]["questions"]})
ELSEWHERE = report(suites={"questions": {"samples": [sample(99, right=True)]}})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (report(seed=1), "seed: it is 0 in "),
        (report(wording="english-train"), "wording: it is 'toy' in "),
        ({"decoders": []}, "is a report of decoders, expected one that metamorph evaluate --model"),
        ({"scores": 1}, "is a report of something else"),
        ("nothing", "cannot be read as JSON"),
        (report(suites={}), "suites: expected the suites by their names"),
        (NO_SCORES, "suite questions: expected samples with id, request and finite scores"),
        (OTHER_REQUEST, "sample s3 has the request 'What is 3?' in "),
        (OTHER_ANSWER, "sample s3 has the expected None in "),
        (TWICE, "suite questions: a sample stands twice in it"),
        (FEWER, "has cosine; --suite names what to compare"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(written, other, said):
    with pytest.raises(UserError, match=".*") as caught:
        said_of([written(report())], [written(other)])
    assert said in str(caught.value)


@pytest.mark.parametrize("scores", [{"right": math.nan}, {"right": 10**400}, {"right": "yes"}])
def test_scores_that_are_no_numbers_are_refused(written, scores):
    path = written(report(suites={"questions": {"samples": [sample(0, **scores)]}}))
    with pytest.raises(UserError, match="suite questions: expected .* finite scores"):
        said_of([path], [path])


@pytest.mark.parametrize("weight", [0, -1, math.inf, "much"])
def test_weights_that_are_none_are_refused(written, weight):
    heavy = sample(0, right=True) | {"weight": weight}
    path = written(report(suites={"questions": {"samples": [heavy]}}))
    with pytest.raises(UserError, match="weights above 0"):
        said_of([path], [path])


@pytest.mark.parametrize(("cluster", "said"), [("a", "has the cluster 'a'"), (1, "any cluster by")])
def test_clusters_are_names_and_the_same_ones(written, cluster, said):
    samples = [sample(0, right=True) | {"cluster": name} for name in (cluster, "b")]
    paths = [written(report(suites={"questions": {"samples": [of]}})) for of in samples]
    with pytest.raises(UserError, match=said):
        said_of(*([path] for path in paths))


def test_drawings_of_other_settings_are_compared_and_a_note_says_so(written):
    few, many = (written(report(drawing={"num_inference_steps": n})) for n in (1, 50))
    assert said_of([few], [many]).endswith(
        "drawn by different settings, which each report has as drawing"
    )
    assert "settings" not in said_of([few], [few])


def test_a_suite_that_is_named_has_to_be_there(written):
    whole, fewer = written(report()), written(FEWER)
    assert "questions" in said_of([whole], [fewer], ["questions"])
    with pytest.raises(UserError, match="--suite: .* has no cosine, it has questions"):
        said_of([whole], [fewer], ["cosine"])
    with pytest.raises(UserError, match="--suite: questions stands twice"):
        said_of([whole], [fewer], ["questions", "questions"])
    with pytest.raises(UserError, match="no sample in common"):
        said_of([fewer], [written(ELSEWHERE)])


def fails(capsys, *arguments: object) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_verb_compares_two_and_refuses_what_does_not_belong(written, capsys):
    first, second = written(report()), written(report(LATER))
    assert main(["evaluate", "--compare", str(first), str(second)]) == 0
    assert "+25.0%" in capsys.readouterr().out
    grouped = ["--compare", str(first), "--against", str(second), str(second)]
    assert main(["evaluate", *grouped]) == 0
    assert "second of 2" in capsys.readouterr().out
    page = first.parent / "page"
    assert main(["evaluate", "--compare", str(first), str(second), "--output", str(page)]) == 0
    assert f"{page} holds report.html" in capsys.readouterr().out
    assert "+25.0% (+0.0% to" in (page / "report.html").read_text()
    assert "expected two reports, got 1" in fails(capsys, "--compare", first)
    said = fails(capsys, "--compare", first, second, "--count", 3)
    assert "--count goes with --decoder or --model without --decoder, not with --compare" in said
    assert "no such file" in fails(capsys, "--compare", first, first.parent / "gone.json")
    assert "give --decoder, --model or --compare" in fails(capsys)
    assert "--against goes with --compare" in fails(capsys, "--model", "m", "--against", first)


def test_comparing_imports_no_torch(written):
    program = (
        "import sys; from metamorph.cli.command import main; "
        "code = main(['evaluate', '--compare', *sys.argv[1:]]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    path = str(written(report()))
    subprocess.run([sys.executable, "-c", program, path, path], check=True, timeout=300)
