"""Which configurations have the form that `save` writes; every wrong one is told by its part."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from snn_ext.patching.recipe import check_recipe

SITE = {
    "module": "Neuron",
    "adapter": "toy",
    "features": [4, 2],
    "origin": "traced",
    "methods": {"imp": {"init": 0.5}, "mpbn": {}, "of another version": None},
    "timesteps": 3,
    "keeps_time": False,
    "clock": "2",
    "folded": ["mpbn"],
}
RECIPE = {"format": 1, "sites": {"1": SITE}, "aliases": {"2.imp": "1.imp"}}


def changed(**fields: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    recipe["sites"]["1"].update(fields)  # type: ignore[index]
    return recipe


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        {**RECIPE, "more": 1},
        {"format": 2, "sites": {}, "aliases": {}},
        changed(features=None, timesteps=None, clock=None, folded=[]),
        changed(keeps_time=True, features=[]),
        {
            **RECIPE,
            "sites": {
                "": {
                    k: v
                    for k, v in SITE.items()
                    if k in ("module", "adapter", "features", "origin", "methods")
                }
            },
        },
    ],
)
def test_what_save_writes(recipe: Any) -> None:
    before = copy.deepcopy(recipe)
    check_recipe(recipe)
    assert recipe == before


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (None, "the configuration is a NoneType"),
        ([], "the configuration is a list"),
        *[
            ({k: v for k, v in RECIPE.items() if k != key}, f"the configuration has no {key!r}")
            for key in RECIPE
        ],
        *[({**RECIPE, "format": f}, f"the configuration has format={f!r}") for f in (0, -1, True, "1", 1.0)],
        ({**RECIPE, "sites": []}, "the configuration has sites=[]"),
        ({**RECIPE, "aliases": ["a"]}, "the configuration has aliases=['a']"),
        ({**RECIPE, "aliases": {"a": 1}}, "the configuration has aliases={'a': 1}"),
        ({**RECIPE, "sites": {"1": 5}}, "the site '1' is a int"),
        *[
            (
                {**RECIPE, "sites": {"1": {k: v for k, v in SITE.items() if k != key}}},
                f"the site '1' has no {key!r}",
            )
            for key in ("module", "adapter", "features", "origin", "methods")
        ],
        *[
            (changed(**{key: value}), f"the site '1' has {key}={value!r}")
            for key, values in {
                "module": (None, 3),
                "adapter": (None,),
                "features": ("4", [0], [4, "2"], [True], 4),
                "origin": (1,),
                "methods": (["imp"], None),
                "timesteps": (0, -3, "3", True),
                "keeps_time": (None, 1, "yes"),
                "clock": (2, True),
                "folded": ("mpbn", None, [1], {"mpbn": 1}),
            }.items()
            for value in values
        ],
        (changed(methods={"imp": []}), "the site '1' has no options for imp"),
        (changed(folded=["bntt"]), "the site '1' is folded in bntt, which it does not have"),
    ],
)
def test_what_it_does_not(recipe: Any, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_recipe(recipe)
    assert str(caught.value) == why
