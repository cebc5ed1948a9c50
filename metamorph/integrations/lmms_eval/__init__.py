"""The model `metamorph` of lmms-eval, which finds it by our entry point: docs/lmms_eval.md."""
