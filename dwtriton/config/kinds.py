"""Kinds of values that a config holds. Limits are far beyond what is of use, and so low that nothing overflows."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator

MAX_WEIGHT = 3e38  # of a box: finite in float32
MAX_PIXELS = 178_956_970  # of an image: Pillow refuses larger ones
MAX_WORKERS = 128  # loader processes
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile


class Section(BaseModel):
    """One table of a config: immutable; unknown keys, NaN and infinity are errors, in defaults too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


T = TypeVar("T")
MAY_CHANGE = "may change when a run is resumed"
MayChange = Annotated[T, MAY_CHANGE]  # of a field that has no influence on what a run learns

Real = Annotated[float, Field(strict=True)]  # strict: neither text nor true is a number
PositiveFloat = Annotated[Real, Field(gt=0)]
NonNegativeFloat = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
BoxWeight = Annotated[Real, Field(ge=0, le=MAX_WEIGHT)]
Whole = Annotated[int, Field(strict=True, le=2**31 - 1)]
PositiveInt = Annotated[Whole, Field(gt=0)]
NonNegativeInt = Annotated[Whole, Field(ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Field(strict=True, gt=0, le=2**16)]  # of a side


def _ascending(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError("the lowest comes first")
    return span


def _buckets(setting: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(setting)
    except ValidationError:
        raise ValueError("give a number of buckets, or their sizes in pixels as [[height, width], ...]") from None


def _workers(setting: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(setting)
    except ValidationError:
        raise ValueError(f'give a number of processes from 0 to {MAX_WORKERS}, or "auto"') from None


def _compile_mode(setting: Any) -> Any:
    return {True: "default", False: "off"}[setting] if isinstance(setting, bool) else setting


Span = Annotated[tuple[Pixels, Pixels], AfterValidator(_ascending)]
Sizes = Annotated[tuple[tuple[Pixels, Pixels], ...], Field(min_length=1)]  # (height, width)
Buckets = Annotated[NonNegativeInt | Sizes, WrapValidator(_buckets)]
Workers = Annotated[Literal["auto"] | Annotated[int, Field(strict=True, ge=0, le=MAX_WORKERS)], WrapValidator(_workers)]
COMPILE_SWITCH = BeforeValidator(_compile_mode)
