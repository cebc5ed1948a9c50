"""A key of a run's data that none of its sources uses is refused, wherever it stands.

What uses a key stands beside it in `metamorph.config.data_keys`.
"""

from dataclasses import fields, replace
from pathlib import Path

from metamorph.config import DataConfig, SourceConfig
from metamorph.config.options import GENERATED_SOURCES, REMOTE
from metamorph.config.reading import Use, iter_unused
from metamorph.data.mixture_file import ENDINGS, read_mixture
from metamorph.data.remote.addresses import is_address
from metamorph.errors import UserError, within

OF_ONE_SOURCE = [entry.name for entry in fields(SourceConfig)]


def check_data(data: DataConfig, own_source: bool = False) -> None:
    """Raises `UserError` for a key that no source of the data, or of its validation, uses. A
    mixture file that is not here may have any. With an `own_source` a program gives the samples,
    and only those of validation may come of the data's keys."""
    if not own_source:
        check_part(data)
    sources: list[SourceConfig] = [] if own_source else [data]
    if isinstance(data.validation, str) and data.validation:
        sources.append(source_of_validation(data, data.validation))
    kinds, all_known = set(), True
    for source in sources:
        if source.source != "mixture":
            kinds.add(kind_of(source))
        elif not Path(source.path).is_file():
            all_known = False
        else:
            for name, part in read_mixture(Path(source.path)).items():
                with within(f"{source.path}: part '{name}'"):
                    check_part(part)
                kinds.add(kind_of(part))
    if not all_known:
        return
    if own_source:
        no_use = "a program gives the samples, and does not use it"
    elif data.source == "mixture":
        no_use = f"no part of {data.path} uses it"
    else:
        no_use = f"source {kind_of(data)} does not use it"
    for key, words, users in iter_unused(data, ("sources", no_use, kinds)):
        if own_source or key not in OF_ONE_SOURCE:
            raise UserError(f"data.{key}: {words} {_only(users)}; leave it out")


def source_of_validation(data: DataConfig, path: str) -> SourceConfig:
    """The samples that `data.validation`, a path, stands for: a mixture, or what the data itself
    is. Raises `UserError` if that is not read from files of one kind."""
    if Path(path).suffix in ENDINGS:
        return SourceConfig("mixture", path=path)
    if data.source == "mixture" or data.source in GENERATED_SOURCES["sources"]:
        raise UserError(
            f"data.validation: {path} is no mixture file, whose name ends with .yaml, and "
            f"data.source {data.source} does not say how to read another"
        )
    return replace(data, path=path)


def check_part(part: SourceConfig) -> None:
    """Raises `UserError` for a key of one source, a mixture too, that it does not use."""
    alone = SourceConfig(**{name: getattr(part, name) for name in OF_ONE_SOURCE})
    kind = kind_of(alone)
    uses: list[Use] = [
        ("sources", f"source {kind}", {kind}),
        ("families", f"family {part.family}", {part.family}),
    ]
    way_out = "leave it out, or give it to its parts" if kind == "mixture" else "leave it out"
    for key, words, users in iter_unused(alone, *uses):
        raise UserError(f"data.{key}: {words} does not use it {_only(users)}; {way_out}")


def kind_of(source: SourceConfig) -> str:
    """What the keys of a source name as their user."""
    is_remote = source.source == "webdataset" and is_address(source.path)
    return REMOTE if is_remote else source.source


def _only(users: tuple[str, ...]) -> str:
    named = [user for user in users if user != REMOTE or "webdataset" not in users]
    return f"(only {', '.join(named)})"
