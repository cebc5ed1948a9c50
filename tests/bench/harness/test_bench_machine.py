import importlib.metadata

import torch

from bench.harness.machine import identity

CPU = torch.device("cpu")


def test_a_peer_that_came_later_is_measured(monkeypatch):
    before = identity(CPU)
    versions = {"flash-attn-4": "4.0", "xformers": "0.1"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    after = identity(CPU)
    assert after["peers"] == "flash-attn-4 4.0, xformers 0.1" != before["peers"]
    assert after == before | {"peers": after["peers"]}
