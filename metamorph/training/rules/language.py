"""What the keys of the stages language, align and instruct say together."""

from metamorph.config import RunConfig
from metamorph.config.reading import is_set
from metamorph.costs.sharding import mesh_shape
from metamorph.errors import UserError
from metamorph.model.float8_gather import check_all_gather
from metamorph.model.precision import check_recipe, choose_recipe
from metamorph.processes import share_of


def check_parallel(config: RunConfig, processes: int) -> None:
    """So many processes can share the rows and the weights."""
    training, parallel = config.training, config.parallel
    share_of("training.rows_per_step", training.rows_per_step, processes)
    mesh_shape(processes, parallel.shard)


def check_visual_loss(config: RunConfig) -> None:
    """The visual loss counts only where the vision head is trained; how it is learned, and how
    fast, where it counts."""
    coefficient = config.training.visual_coefficient
    if config.stage != "instruct" and coefficient:
        raise UserError(
            f"training.visual_coefficient: got {coefficient:g}, but stage {config.stage} leaves "
            f"the vision head as it is, random at first, and a loss through it is noise; leave the "
            f"key out (0), and set it in stage instruct, which trains the head"
        )
    if is_set(config, "training.visual_loss") and not coefficient:
        raise UserError(
            f"training.visual_loss: nothing is learned by {config.training.visual_loss} where "
            f"training.visual_coefficient is 0; leave out one of the two"
        )
    if is_set(config, "training.vision_head_rate_factor") and not coefficient:
        raise UserError(
            "training.vision_head_rate_factor: the vision head learns nothing where "
            "training.visual_coefficient is 0; leave out one of the two"
        )
    if config.training.visual_input_dropout and not coefficient:
        raise UserError(
            "training.visual_input_dropout: pictures are hidden only for what predicts them, which "
            "learns nothing where training.visual_coefficient is 0; leave out one of the two"
        )


def check_factors(config: RunConfig) -> None:
    """Some part of the model has a learning rate."""
    keys = ["projector_rate_factor", "language_rate_factor"]
    if config.training.visual_coefficient:
        keys.append("vision_head_rate_factor")
    if not any(getattr(config.training, key) for key in keys):
        raise UserError(
            f"training.{keys[0]}: {' and '.join(keys)} are 0, so that stage {config.stage} would "
            f"train nothing; leave one out (1)"
        )


def check_float8(config: RunConfig, by_torchrun: bool) -> None:
    """The recipe is the backend's, rows have a length that float8 products take, and weights that
    are to be gathered in 8 bits can be."""
    training, length = config.training, config.data.row_length
    try:
        check_recipe(training.precision, training.fp8_backend, training.fp8_recipe)
    except UserError as error:
        raise UserError(f"training.{error}") from error
    check_all_gather(training, by_torchrun)
    if training.precision != "fp8":
        return
    # The gradient of a weight is a product over the tokens of a row.
    recipe, multiple = choose_recipe(training.fp8_backend, training.fp8_recipe)
    if length % multiple:
        name = f"precision fp8 by {recipe or training.fp8_backend}"
        raise UserError(f"data.row_length: {name} needs a multiple of {multiple}, got {length}")
