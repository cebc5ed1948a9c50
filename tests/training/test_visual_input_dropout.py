"""Pictures whose own tokens a step hides, so that each is predicted from the words alone."""

import pytest
import torch

from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.data.toy.tasks import make_task
from metamorph.errors import UserError
from metamorph.model.opening import open_model
from metamorph.training.batch import Batch
from metamorph.training.language_stage import StepLosses, batch_losses, without_some
from metamorph.training.rules import check_plan, check_rules
from tests.tiny_run import ALL_KINDS, tiny_config

CPU = torch.device("cpu")
ALMOST_ALL = 1 - 1e-7  # of the pictures


def test_whole_predicted_pictures_are_hidden_and_no_others():
    features = torch.rand(200, 4, 3) + 0.1
    predicted = torch.arange(0, 200, 2)  # every other picture is a prompt's
    targets = (predicted[:, None] * 4 + torch.arange(4)).flatten()
    found = without_some(features, targets, 0.25)
    hidden = (found == 0).all(-1)
    assert torch.equal(hidden.any(-1), hidden.all(-1))
    assert not hidden[1::2].any() and 10 < hidden[0::2, 0].sum() < 40
    torch.testing.assert_close(found[~hidden], features[~hidden], rtol=0, atol=0)
    assert without_some(features[:0], targets[:0], 0.5).shape == (0, 4, 3)


@pytest.fixture
def model_and_batch(folder):
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    documents = [encoder.encode(make_task(0, i, "train", ALL_KINDS).sample) for i in range(6)]
    row = pack_row(documents, 400, 0)
    return model, Batch.of(row, model.vision, CPU), TargetCounts.of([row])


def test_what_is_hidden_is_still_the_target(model_and_batch):
    """Targets are of the true pictures; what is predicted looks at none of their tokens."""
    model, batch, counts = model_and_batch
    shown, targets = batch_losses(model, batch, counts)
    hidden, same = batch_losses(model, batch, counts, visual_input_dropout=ALMOST_ALL)
    assert torch.equal(same, targets)
    assert not torch.allclose(hidden.visual, shown.visual, rtol=1e-4)
    features = batch.visual_features(model.vision)
    flat = features.flatten(0, 1).clone()
    flat[batch.visual_targets] = 0
    states = model(
        batch.token_ids,
        batch.positions,
        batch.intervals,
        flat.view_as(features),
        batch.visual_positions,
    )
    blind = model.predict_visual(states[batch.visual_rows])
    distance = 1 - (blind * targets.flatten(0, 1)).sum(-1).mean()
    torch.testing.assert_close(hidden.visual, distance, rtol=1e-4, atol=1e-5)


def test_nothing_is_hidden_where_nothing_is_learned(model_and_batch):
    model, batch, counts = model_and_batch
    step = StepLosses(model, "cosine", ALMOST_ALL)
    learning = step(batch, counts)[1]
    measured = step.eval()(batch, counts)[1]
    plain = batch_losses(model, batch, counts)[0].visual
    assert torch.equal(measured, plain) and not torch.equal(learning, plain)


@pytest.mark.parametrize(
    ("stage", "coefficient", "message"),
    [
        ("align", 0.0, r"training.visual_input_dropout: stage align does not use it"),
        ("instruct", 0.0, "training.visual_input_dropout: pictures are hidden only for what"),
    ],
)
def test_it_is_refused_where_no_picture_is_learned(tmp_path, stage, coefficient, message):
    keys = {"visual_input_dropout": 0.5, "visual_coefficient": coefficient}
    config = tiny_config(tmp_path, stage, **keys)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=message):
            check()
