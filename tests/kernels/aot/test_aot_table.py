import importlib.util
import re

import pytest
import triton

from metamorph_kernels.aot import table
from metamorph_kernels.aot.table import main


def test_a_row_for_each_configuration(capsys):
    assert main(["--kernel", "decode_join"]) == 0
    header, *rows, verdict = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["kernel", "configuration", "arch"]
    assert len(rows) == 12 and all(row.startswith("decode_join") for row in rows)
    assert re.fullmatch(
        rf"12 configurations for sm_90: all fit \(Triton {re.escape(triton.__version__)}, "
        r"ptxas \d+\.\d+\.\d+\)",
        verdict,
    )


def test_another_architecture_has_its_own_limit(capsys, monkeypatch):
    monkeypatch.setitem(table.MOST_SHARED_BYTES, "sm_80", 1500)
    assert main(["--kernel", "decode_join", "--arch", "sm_80"]) == 1
    printed = capsys.readouterr().out
    assert "needs 2048 bytes of shared memory" in printed and "9 do not fit" in printed


def test_what_does_not_compile_is_a_row_with_the_reason(capfd):
    assert main(["--kernel", "float8_product", "--arch", "sm_80"]) == 1
    printed, errors = capfd.readouterr()
    [_, *rows, verdict] = printed.splitlines()
    for row in rows:
        assert "does not compile: type fp8e4nv not supported in this architecture." in row
    assert verdict.startswith(f"{len(rows)} configurations for sm_80: {len(rows)} do not fit")
    assert errors == ""


def test_only_kernels_with_matrix_products(capsys):
    assert main(["--matrix", "--kernel", "decode", "--configuration", "D=64"]) == 0
    _, *rows, verdict = capsys.readouterr().out.splitlines()
    assert verdict.startswith("2 configurations")
    assert all(re.match(r"decode_split +(bf16|fp16) D=64", row) for row in rows)


def test_without_triton_there_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "triton is not installed: without it no kernel can be compiled\n"
    )


def test_refuses_to_choose_nothing(capsys):
    assert main(["--kernel", "join", "--configuration", "int4", "--matrix"]) == 2
    assert capsys.readouterr().err == (
        "no kernel with 'join' in its name has a configuration with 'int4' and matrix products\n"
    )


def test_refuses_an_architecture_without_limits(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--arch", "hopper"])
    assert stopped.value.code == 2
    assert "choose from" in capsys.readouterr().err
