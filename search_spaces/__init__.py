"""What may be chosen: blocks, families of networks, positions, spaces."""

from typing import TYPE_CHECKING

from search_spaces.lazily import lazily

if TYPE_CHECKING:
    from search_spaces.arrangement import Arrangement
    from search_spaces.errors import SpaceError
    from search_spaces.plan import Plan
    from search_spaces.planning import load_plan
    from search_spaces.space import Space, list_spaces
    from search_spaces.variant import Variant
    from search_spaces.workload import Workload

__all__ = ["Arrangement", "Plan", "Space", "SpaceError", "Variant", "Workload", "list_spaces", "load_plan"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Arrangement": "search_spaces.arrangement",
        "Plan": "search_spaces.plan",
        "Space": "search_spaces.space",
        "SpaceError": "search_spaces.errors",
        "Variant": "search_spaces.variant",
        "Workload": "search_spaces.workload",
        "list_spaces": "search_spaces.space",
        "load_plan": "search_spaces.planning",
    },
)
