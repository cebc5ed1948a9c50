import pytest
from bench_records import attention, line, record, timing, write_attention

from bench.harness.results import FILE, Result, failed, write_record
from bench.harness.timing import Timing
from bench.reports import compare


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (timing(1.0, 0.01), timing(1.07, 0.01), "slower"),
        (timing(1.0, 0.01), timing(1.04, 0.01), "alike"),  # apart, but below the threshold
        (timing(1.0, 0.05), timing(1.07, 0.05), "alike"),  # above it, but within the spread
        (timing(1.07, 0.01), timing(1.0, 0.01), "faster"),
        (timing(1.04, 0.01), timing(1.0, 0.01), "alike"),
        (Timing([1.0], None, None), Timing([2.0], None, None), "alike"),  # once is no evidence
    ],
)
def test_slower_is_apart_and_above_the_threshold(old, new, verdict):
    assert compare.difference(old, new, 0.05) == verdict


def write(folder, *results):
    write_record(folder, "entry", record(results))
    return str(folder)


def outcome(tmp_path, capsys, old, new, *options):
    """Exit status and what was printed."""
    folders = [write(tmp_path / name, *lines) for name, lines in (("old", old), ("new", new))]
    return compare.main([*folders, *options]), capsys.readouterr().out


def ours(milliseconds):
    return line("op", "case", "ours triton", milliseconds)


def peer(milliseconds):
    return line("op", "case", "Peer", milliseconds)


BROKEN = failed("op", "case", "ours triton", "RuntimeError: x")


@pytest.mark.parametrize(
    ("old", "new", "status", "printed"),
    [
        ([ours(1.0)], [ours(1.01)], 0, "alike within 5 % or their spread: 1"),
        ([ours(1.0)], [ours(1.2)], 1, "slower: 1\n  ours triton: op, case  1 to 1.2 ms, x1.200"),
        ([ours(1.2)], [ours(1.0)], 0, "faster: 1"),
        ([peer(1.0)], [peer(1.2)], 0, "slower: 1\n  Peer: op, case"),
        ([ours(1.0)], [BROKEN], 1, "failed: 1\n  ours triton: op, case  RuntimeError: x"),
        ([BROKEN], [BROKEN], 1, "failed: 1"),
        ([BROKEN], [ours(1.0)], 0, "new: 1\n  ours triton: op, case  1 ms"),
        (
            [ours(1.0), peer(1.0)],
            [peer(1.0)],
            0,
            "missing: 1\n  ours triton: op, case  not measured",
        ),
        ([peer(1.0)], [Result("op", "case", "Peer", "absent", "gone")], 0, "op, case  gone"),
        # What is said of a line beside its time.
        (
            [ours(1.0)],
            [ours(1.2), Result("op", "case", "ours triton", "ok", "9 rows/s")],
            1,
            "x1.2",
        ),
    ],
)
def test_what_happened_to_a_line(tmp_path, capsys, old, new, status, printed):
    found, text = outcome(tmp_path, capsys, old, new)
    assert found == status and printed in text
    assert "ceilings, new / old: copy x1.000, matrix product x1.000, float8 product x1.000" in text


def test_the_threshold_can_be_moved(tmp_path, capsys):
    old, new = [ours(1.0)], [ours(1.2)]
    assert outcome(tmp_path, capsys, old, new, "--threshold", "25")[0] == 0


def test_other_code_is_compared_and_another_machine_is_not(tmp_path, capsys):
    write_attention(tmp_path / "old")
    old = str(tmp_path / "old" / FILE)
    write_attention(tmp_path / "code", code="changed", commit="fedcba")
    assert compare.main([old, str(tmp_path / "code")]) == 0
    assert "commit fedcba" in capsys.readouterr().out
    write_attention(tmp_path / "driver", scale=1.2, driver_version="590.0")
    with pytest.raises(SystemExit) as stopped:
        compare.main([old, str(tmp_path / "driver")])
    assert stopped.value.code == 2
    assert "different machines: driver_version 580.1, then 590.0;" in capsys.readouterr().err
    assert compare.main([old, str(tmp_path / "driver"), "--force"]) == 1


def test_nothing_to_compare_is_said(tmp_path, capsys):
    write_record(tmp_path / "old", "a", attention(512))
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "old"), str(tmp_path / "none")])
    assert stopped.value.code == 2 and "none: no results there" in capsys.readouterr().err
