"""How lmms-eval learns of the model `metamorph`: what our entry point `lmms_eval.models` gives."""


def manifest():
    """lmms-eval's `ModelManifest` of MetaMorph models.

    Neither torch nor the model's class is imported here: lmms-eval asks every installed plug-in
    while it imports itself, whichever model is evaluated.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    # Only tasks of `simple` models may draw on their way to an answer.
    return ModelManifest(
        "metamorph", simple_class_path="metamorph.integrations.lmms_eval.model.Model"
    )
