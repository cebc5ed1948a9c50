"""Losses, gradients, states, logits and predictions of the official classes, case by case."""

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import linear_cosine_loss, linear_cross_entropy
from tests.model.golden import expectations, golden_model, our_name, pack_case, tensors

CASES = "abcde"
TOLERANCE = expectations()["tolerance"]


def near(actual, expected, tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=tolerance, rtol=0)


def concatenated(case: str, kind: str) -> torch.Tensor:
    key = f"case_{case}.{kind}"
    if key in tensors():
        return tensors()[key]
    samples = len(expectations()["cases"][case]["samples"])
    return torch.cat([tensors()[f"{key}.sample_{index}"] for index in range(samples)])


def losses(model, states, packed):
    text = linear_cross_entropy(
        states[packed.text_rows], model.language.output_weight, packed.text_labels
    )
    head = model.vision_head
    visual = linear_cosine_loss(
        F.gelu(head.linear_1(states[packed.visual_rows])),
        head.linear_2.weight,
        head.linear_2.bias,
        packed.features.flatten(0, 1)[packed.visual_targets],
    )
    return text, visual


def group_norm(model, group: str) -> float:
    prefix = {
        "embedding": "language.model.embed_tokens.",
        "layers": "language.model.layers.",
        "final_norm": "language.model.norm.",
        "lm_head": "language.lm_head.",
    }.get(group, f"{group}.")
    squares = [
        parameter.grad.double().square().sum()
        for name, parameter in model.named_parameters()
        if name.startswith(prefix)
    ]
    return torch.stack(squares).sum().sqrt().item()


@pytest.mark.parametrize("case", CASES)
def test_states_logits_and_predictions(case):
    model, packed = golden_model(), pack_case(case)
    with torch.no_grad():
        states = model(*packed.inputs)
        logits = model.language.head(states)
        predicted = model.predict_visual(states[packed.visual_rows])
    near(states, concatenated(case, "hidden"), TOLERANCE["hidden_abs"])
    near(logits, concatenated(case, "logits"), TOLERANCE["logits_abs"])
    if len(packed.visual_rows):
        expected = concatenated(case, "predicted_visual")
        near(predicted, expected, TOLERANCE["predicted_visual_abs"])
    else:
        assert predicted.shape == (0, 48)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case):
    model, packed = golden_model(), pack_case(case)
    expected = expectations()["cases"][case]
    text, visual = losses(model, model(*packed.inputs), packed)
    (text + visual).backward()

    near(text, expected["expected_text_loss"], TOLERANCE["loss_abs"])
    if expected["expected_visual_loss"] is None:
        assert visual.item() == 0
    else:  # the official loss is -cos, ours 1 - cos
        near(visual - 1, expected["expected_visual_loss"], TOLERANCE["loss_abs"])
    for group, norm in expected["grad_norms"].items():
        limits = {"rel": TOLERANCE["grad_norm_rel"], "abs": TOLERANCE["grad_norm_abs"]}
        assert group_norm(model, group) == pytest.approx(norm, **limits), group
    parameters = dict(model.named_parameters())
    for name, gradient in tensors("vpit_tiny_grads").items():
        if name.startswith(f"case_{case}."):
            ours = parameters[our_name(name.removeprefix(f"case_{case}."))]
            near(ours.grad, gradient, TOLERANCE["full_gradient_abs"])


def test_a_packed_document_sees_no_other():
    """Change everything in the first and last document: the middle one keeps its bits."""
    model, packed = golden_model(), pack_case("e")
    first, middle, last = packed.intervals.document_lengths
    kept = slice(first, first + middle)
    with torch.no_grad():
        before = model(*packed.inputs)
        packed.token_ids[:first] = 7
        packed.token_ids[-last:] = 8
        packed.features = F.normalize(packed.features.flip(0, 1) + 0.1, dim=-1)
        after = model(*packed.inputs)
    assert torch.equal(before[kept], after[kept])
    assert not torch.isclose(before[:first], after[:first]).all(dim=-1).any()
    assert not torch.isclose(before[-last:], after[-last:]).all(dim=-1).any()


def test_a_state_sees_nothing_behind_it():
    model, packed = golden_model(), pack_case("c")
    with torch.no_grad():
        before = model(*packed.inputs)
        packed.token_ids[60] = 7
        after = model(*packed.inputs)
    torch.testing.assert_close(before[:60], after[:60], atol=1e-6, rtol=0)
    assert not torch.isclose(before[60:], after[60:]).all(dim=-1).any()


def test_the_prediction_is_a_unit_vector():
    model = golden_model()
    lengths = model.predict_visual(torch.randn(9, 64)).norm(dim=-1)
    near(lengths, torch.ones(9), 1e-6)


def test_embed_places_projected_features_and_reaches_the_projector():
    model, packed = golden_model(), pack_case("c")
    embeddings = model.embed(packed.token_ids, packed.features, packed.visual_positions)
    projected = model.projector(packed.features.flatten(0, 1))
    assert torch.equal(embeddings[packed.visual_positions], projected)
    text = torch.ones(len(packed.token_ids), dtype=torch.bool)
    text[packed.visual_positions] = False
    table = model.language.model.embed_tokens.weight
    assert torch.equal(embeddings[text], table[packed.token_ids[text]])
    embeddings[packed.visual_positions].sum().backward()
    assert model.projector.linear_1.weight.grad.abs().sum() > 0
    assert table.grad.abs().sum() == 0


def test_embed_without_images_still_gives_the_projector_a_zero_gradient():
    model, packed = golden_model(), pack_case("d")
    assert packed.features.shape[0] == 0
    model.embed(packed.token_ids, packed.features, packed.visual_positions).sum().backward()
    for parameter in model.projector.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_embed_refuses_a_wrong_number_of_positions():
    model, packed = golden_model(), pack_case("b")
    with pytest.raises(ValueError, match="visual_positions: expected one for each of 16.*got 15"):
        model.embed(packed.token_ids, packed.features, packed.visual_positions[:-1])
