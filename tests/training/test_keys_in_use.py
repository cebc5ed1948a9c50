"""Every key of a run is read by a step of its stage, or refused, or needs what is named here."""

import pytest

from metamorph.config.reading import read_key
from metamorph.errors import UserError
from metamorph.training.loop import train
from metamorph.training.rules import check_plan
from tests.keys_read import keys_read, other_values
from tests.tiny_run import decoder_config, tiny_config, tiny_one_pass_config

READ_ELSEWHERE = {  # and where
    "training.checkpoint_every",  # before the last step
    "training.on_full_disk",  # on a full disk
    "parallel.gpus",  # by a dry run
    "parallel.shard",  # by a decoder's run of several processes
}


def run_of(stage: str, folder, tmp_path):
    if stage == "decoder":
        return decoder_config(folder, steps=1)
    if stage == "rae":
        return tiny_one_pass_config(tmp_path)
    return tiny_config(folder, stage, steps=1)


def set_key(config, key: str, value) -> None:
    section, _, name = key.rpartition(".")
    setattr(read_key(config, section) if section else config, name, value)


@pytest.mark.parametrize("stage", ["instruct", "decoder", "rae"])
def test_a_key_is_read_or_refused(folder, tmp_path, stage, monkeypatch):
    config = run_of(stage, folder, tmp_path)
    config.training.steps = 1
    with keys_read(monkeypatch) as read:
        train(config)
    unread = other_values().keys() - read - READ_ELSEWHERE
    assert "training.precision" in read and "monitor.samples" in unread
    check_plan(config, 1)
    for key in unread:
        own = read_key(config, key)
        set_key(config, key, other_values()[key])
        with pytest.raises(UserError, match=f"^{key}: "):
            check_plan(config, 1)
        set_key(config, key, own)
