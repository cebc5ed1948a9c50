"""Every rule by which a configuration is refused: asked once, before anything is loaded.

Limits of single keys stand beside them in `metamorph.config`, and so does what uses a key; here is
what keys, processes, device and installed libraries say together. Each rule raises `UserError` that
names the key.
"""

from metamorph.training.rules.run import check_plan, check_rules, check_same_config

__all__ = ["check_plan", "check_rules", "check_same_config"]
