"""The directive `config-keys`: a table of the keys of a run for each section of `RunConfig`."""

import json
from dataclasses import MISSING, fields, is_dataclass

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.rst import escape

from metamorph.config.keys import RunConfig
from metamorph.config.reading import KINDS, choices_of, iter_fields

TABLE = """\
.. list-table::
   :header-rows: 1

   * - key
     - value
     - meaning
""".splitlines()


class ConfigKeys(SphinxDirective):
    """Takes nothing: what a key means stands beside its default, in `metamorph.config.keys`."""

    def run(self) -> list:
        lines = []
        for title, config_class, prefix in sections():
            lines += [f".. rubric:: {title}", "", *TABLE]
            for entry in fields(config_class):
                if not is_dataclass(entry.type):
                    lines += row(prefix, entry, config_class)
            lines.append("")
        self.content = StringList(lines, source=__file__)
        return self.parse_content_to_nodes()


def sections() -> list[tuple[str, type, str]]:
    """Title, class and prefix of the keys of a run's own and of each section."""
    nested = [entry for entry in fields(RunConfig) if is_dataclass(entry.type)]
    return [("run", RunConfig, ""), *((e.name, e.type, f"{e.name}.") for e in nested)]


def row(prefix: str, entry, config_class: type) -> list[str]:
    defaults = {key: default for key, _, default, _ in iter_fields(config_class)}
    default = defaults[entry.name]
    choices = choices_of(entry)
    value = ", ".join(f"``{c}``" for c in choices) if choices else KINDS[entry.type][1]
    shown = "required" if default is MISSING else f"default ``{json.dumps(default)}``"
    where = "".join(
        f" {users.capitalize()} {', '.join(entry.metadata[users])}."
        for users in ("stages", "sources", "families")
        if users in entry.metadata
    )
    return [
        f"   * - ``{prefix}{entry.name}``",
        f"     - {value}; {shown}",
        f"     - {escape(entry.metadata['help'])}.{where}",
    ]


def setup(app) -> dict:
    app.add_directive("config-keys", ConfigKeys)
    return {"parallel_read_safe": True}
