"""Made-up records, as a run on a GPU would leave them."""

from bench.harness.results import Result, Timing, failed, write_record

LIMITS = {
    "copy_gigabytes_per_second": 100.0,
    "matmul_teraflops": 50.0,
    "nominal_teraflops": 80.0,
    "float8_teraflops": 90.0,
    "nominal_float8_teraflops": 160.0,
    "float8_absence": None,
}
MACHINE = {
    "code": "c0de",
    "device": "Some GPU 80GB",
    "torch": "2.13",
    "triton": "3.5",
    "commit": "abcdef",
    "command": "python3 -m bench.runs.entries an-entry --device cuda",
    "date": "2001-02-03T04:05:06+00:00",
    "driver_version": "580.1",
    "clocks.sm": "1980 MHz",
}


def timing(milliseconds, spread=0.01):
    low, high = milliseconds * (1 - spread), milliseconds * (1 + spread)
    return Timing([low, low, milliseconds, high, high], 0.1, 0.5)


def line(operation, case, provider, milliseconds, rate=None, unit=None, spread=0.01):
    times = timing(milliseconds, spread)
    return Result(operation, case, provider, "ok", "", times, rate, unit, error=1e-3, bound=2e-3)


def record(results, **machine):
    return {"machine": MACHINE | machine, "limits": LIMITS, "seconds": 1.0, "results": results}


def attention(tokens, scale=1.0, **machine):
    """Ours is linear in tokens, the peer square; above 1000 tokens it is the slower one."""
    case = f"spans, {tokens} tokens, 32:8 heads of 128, bfloat16"
    times = {"ours triton": tokens / 1000, "Peer": tokens**2 / 1e6}
    results = [
        line("attention", case, name, ms * scale, 20.0, "TFLOP/s") for name, ms in times.items()
    ]
    results += [
        line("attention", case, "ours fp8", scale, 45.0, "TFLOP/s fp8"),
        Result("attention", case, "gone", "absent", "not installed"),
        failed("attention", case, "broken", ValueError("no such shape")),
    ]
    return record(results, **machine)


def write_attention(folder, scale=1.0, **machine):
    for tokens in (512, 2048, 4096, 8192):
        write_record(folder, f"attention-{tokens}", attention(tokens, scale, **machine))
