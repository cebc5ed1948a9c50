import json
from pathlib import Path

import pytest
from bench_records import LIMITS, MACHINE, attention, line, record, write_attention

from bench.harness.results import FILE, Result, failed, read_records, write_record
from bench.harness.timing import Timing
from bench.reports import page, tables
from bench.reports.__main__ import main
from bench.reports.page import BEGIN, END

PAGE = "some-gpu-80gb-2001-02-03"


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return path


def test_a_rate_is_held_to_the_ceiling_of_its_precision():
    results = [
        line("op", "case", "ours triton", 2.0, 25.0, "TFLOP/s"),
        line("op", "case", "ours fp8", 1.0, 45.0, "TFLOP/s fp8"),
        line("op", "case", "ours copy", 1.0, 80.0, "GB/s"),
    ]
    shown = tables.text({"a": record(results)})
    rows = [row.split() for row in shown.splitlines() if row.startswith("  ours")]
    assert [row[5:-3] for row in rows] == [
        ["25", "TFLOP/s", "50.0%", "31.2%"],
        ["45", "TFLOP/s", "fp8", "50.0%", "28.1%"],
        ["80", "GB/s", "80.0%"],
    ]
    assert "in float8 90 to 90 TFLOP/s (nominal 160 TFLOP/s)" in shown


def test_tables_show_ratios_and_reasons():
    records = {
        "a": {
            "machine": {"device": "D", "torch": "1", "triton": "2", "code": "c", "commit": "d"},
            "limits": {
                "copy_gigabytes_per_second": 100.0,
                "matmul_teraflops": 50.0,
                "nominal_teraflops": 80.0,
            },
            "results": [
                Result("op", "case", "gone", "absent", "not installed"),
                _result("ours triton", 2.0, 20.0),
                _result("peer", 3.0, 40.0),
                failed("op", "case", "broken", ValueError("no such shape")),
            ],
        }
    }
    text = tables.text(records)
    assert "absent, not installed: gone" in text
    assert "broken: failed, ValueError: no such shape" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("  peer"))
    assert row == "peer 3 2.5-3.5 0.1 40 TFLOP/s 80.0% 50.0% 0.500 1.50 1.0e-03".split()
    assert "| peer | 3 | 2.5-3.5 | 0.1 | 40 TFLOP/s | 80.0% | 50.0% |" in tables.markdown(records)


def _result(provider, milliseconds, rate):
    low, high = milliseconds - 0.5, milliseconds + 0.5
    timing = Timing([high, low, milliseconds, low, high], 0.1, 0.5)
    return Result("op", "case", provider, "ok", "", timing, rate, "TFLOP/s", error=1e-3, bound=2e-3)


def test_records_from_before_float8_are_shown_without_its_ceiling():
    old = {key: value for key, value in LIMITS.items() if "float8" not in key}
    results = [line("op", "case", "ours fp8", 1.0, 45.0, "TFLOP/s fp8")]
    shown = tables.text({"a": record(results) | {"limits": old}})
    assert "in float8 none, not measured (nominal unknown)" in shown
    assert "45 TFLOP/s fp8 " in shown and "%" not in shown.split("ours fp8")[1]


@pytest.mark.parametrize("change", [{"a_new_field": 1}, {"operation": None}])
def test_records_of_another_version_are_refused_in_one_sentence(tmp_path, change, capsys):
    write_attention(tmp_path)
    saved = json.loads((tmp_path / FILE).read_text())
    result = saved["attention-2048"]["results"][0] | change
    if result["operation"] is None:
        del result["operation"]
    saved["attention-2048"]["results"][0] = result
    (tmp_path / FILE).write_text(json.dumps(saved))
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "attention-2048 is from another version of bench; measure it again" in (
        capsys.readouterr().err
    )


def test_every_figure_of_a_page_says_where_it_is_from():
    shown = tables.markdown({"a": attention(512), "b": attention(2048, commit="fedcba")})
    for case, commit in (("512", "abcdef"), ("2048", "fedcba")):
        [table] = [
            part for part in shown.split("\n**") if part.startswith(f"attention, spans, {case}")
        ]
        assert f"`{MACHINE['command']}`, commit {commit}, {MACHINE['date']}, SM 1980 MHz" in table
    assert "Some GPU 80GB; driver 580.1, torch 2.13, Triton 3.5, code c0de, commit abcdef" in shown


def test_times_over_three_sizes_have_an_exponent(tmp_path):
    write_attention(tmp_path)
    shown = tables.text(read_records(tmp_path))
    table = shown.split("time against tokens: attention, spans, N tokens, 32:8 heads of 128")[1]
    rows = {row.split("  ")[1]: row.split() for row in table.splitlines() if row.startswith("  ")}
    assert rows["ours triton"][-5:] == ["512", "to", "8192", "1.00", "0%"]
    assert rows["Peer"][-2:] == ["2.00", "0%"]


def test_the_page_and_the_summary_are_those_of_the_records(tmp_path, readme, capsys):
    results, docs = tmp_path / "out", tmp_path / "docs" / "results"
    write_attention(results)
    main([str(results), "--write", str(docs), "--readme", str(readme)])
    written = docs / f"{PAGE}.md"
    assert str(written) in capsys.readouterr().out

    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\nSome GPU 80GB, 2001-02-03; driver 580.1, torch 2.13")
    assert text.endswith(f"[docs/results/{PAGE}.md](docs/results/{PAGE}.md).\n{END}\nafter\n")
    assert "; by `python3 -m bench.runs.entries an-entry --device cuda`." in text
    case = "spans, 512 tokens, 32:8 heads of 128, bfloat16"
    rows = [row for row in text.splitlines() if case in row]
    assert rows == [  # a peer that wins is there; float8 has a line of its own
        f"| attention | {case} | 0.512 (triton) | 0.2621 (Peer) | **0.51** | 40% |",
        f"| attention, float8 | {case} | 1 (fp8) | none |  | 50% |",
    ]
    assert "8192 tokens" not in text

    page_text = written.read_text()
    for name in ("attention.svg", "attention-sizes.svg"):
        assert f"![]({PAGE}/{name})" in page_text
        assert 1000 < (docs / PAGE / name).stat().st_size < 150_000
    assert "ours triton" in (docs / PAGE / "attention-sizes.svg").read_text()
    assert tables.markdown(read_records(results)) in page_text


def test_the_same_records_are_the_same_files(tmp_path):
    write_attention(tmp_path / "out")
    records = read_records(tmp_path / "out")
    (tmp_path / "one" / PAGE).mkdir(parents=True)
    (tmp_path / "one" / PAGE / "stale.svg").write_text("")
    pages = [page.write(records, tmp_path / name) for name in ("one", "two")]
    one, two = (
        {path.name: path.read_bytes() for path in page.parent.rglob("*.*")} for page in pages
    )
    assert one == two and "stale.svg" not in one


def test_a_summary_of_a_cpu_says_so(tmp_path, readme):
    records = {"a": attention(512, device="CPU, 2 threads")}
    assert page.write(records, tmp_path, readme).name == "cpu-2-threads-2001-02-03.md"
    assert f"{BEGIN}\n{page.REHEARSAL}\n" in readme.read_text()


def test_a_lower_limit_is_no_peer_and_ours_may_be_missing(tmp_path, readme):
    results = [
        line("op", "9 rows", "the products, no bias", 1.0),
        line("op", "9 rows", "ours torch", 3.0),
        line("op", "9 rows", "Peer", 30.0),
        line("other", "9 rows", "Peer", 2.0),
    ]
    page.write({"a": record(results)}, tmp_path, readme)
    text = readme.read_text()
    assert "| op | 9 rows | 3 (torch) | 30 (Peer) | 10.00 |  |" in text
    assert "| other | 9 rows | none | 2 (Peer) |  |  |" in text


def test_the_readme_has_a_place_for_the_summary():
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1


def test_what_cannot_be_written_leaves_nothing(tmp_path, readme, capsys):
    write_attention(tmp_path / "out")
    write_record(tmp_path / "two", "a", attention(512))
    write_record(tmp_path / "two", "b", attention(2048, device="Another GPU"))
    (tmp_path / "bare.md").write_text("no markers")
    docs = tmp_path / "docs"
    for arguments, message in (
        (["out", "--write", "docs", "--readme", "bare.md"], "expected one <!-- results:begin -->"),
        (["two", "--write", "docs"], "expected results of one device, got "),
        (["none", "--write", "docs"], "expected results of one device, got none"),
        (["out", "--readme", "README.md"], "--readme needs --write"),
    ):
        paths = [word if word.startswith("--") else str(tmp_path / word) for word in arguments]
        with pytest.raises(SystemExit) as stopped:
            main(paths)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not docs.exists() and "old" in readme.read_text()
