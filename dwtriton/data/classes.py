"""Classes of a detector and categories of a data set, matched by name."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dwtriton.core.text import listed
from dwtriton.data.annotations import Records
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.values import Id

MAX_NAMES = 12  # in a message


def different_categories(train: dict[Id, str], val: dict[Id, str]) -> list[str]:
    """Return the categories, names by id, that only one of two splits has; none if training has all of validation.

    A run needs every class of validation in training; one that validation lacks is not measured.
    """
    if set(val.values()) <= set(train.values()):
        return []
    return sorted(
        f"{id_} {name}"
        for own, others in ((train, set(val.values())), (val, set(train.values())))
        for id_, name in own.items()
        if name not in others
    )


def match_classes(records: Records, classes: Sequence[str], problems: DataProblems) -> Records:
    """Return the records with the categories `classes` of a detector, matched by name, and note what differs.

    Categories that the detector does not know are left out with their annotations; those that the file lacks are added
    with new ids. Raises DataError if no class is in the file.
    """
    known, wanted = {name: id_ for id_, name in records.class_names.items()}, set(classes)
    absent = [name for name in classes if name not in known]
    unknown = {id_: name for name, id_ in known.items() if name not in wanted}
    if len(absent) == len(classes):
        raise DataError(
            f"{records.path} has none of the classes {listed(classes, MAX_NAMES)}, but {listed(list(known), MAX_NAMES)}"
        )
    if absent:
        problems.warn(f"classes without a category in {records.path}, not measured: {listed(absent, MAX_NAMES)}")
    if [name for name in known if name in wanted] != [name for name in classes if name in known]:
        problems.warn(f"classes have another order in {records.path}; they are matched by name")
    annotations = {}
    for id_, annotation in records.annotations.items():
        name = _name_of(annotation, unknown)
        if name is None:
            annotations[id_] = annotation
        else:
            problems.add("object of a category that the detector does not know, not counted", f"{name} ({id_})")
    new_ids = _new_ids(list(known.values()))
    categories: dict[Id, dict[str, Any]] = {}
    for name in classes:
        id_ = known[name] if name in known else next(new_ids)
        categories[id_] = records.categories.get(id_) or {"id": id_, "name": name}
    return records._replace(categories=categories, annotations=annotations)


def _name_of(annotation: dict[str, Any], categories: dict[Id, str]) -> str | None:
    id_ = annotation["category_id"]
    return categories.get(id_) if isinstance(id_, Id) else None


def _new_ids(taken: Collection[Id]) -> Iterator[Id]:
    """Yield ids that no category has, of the kind that they have."""
    whole = all(isinstance(id_, int) for id_ in taken)
    number = max(taken) if whole else 0
    while True:
        number += 1
        if whole:
            yield number
        elif f"class {number}" not in taken:
            yield f"class {number}"
