"""The role of every position of a batch, and the selector language that names positions."""

from gatelens.tokens.roles import Role
from gatelens.tokens.selectors import Selection, SelectorLike
from gatelens.tokens.token_map import TokenMap, TokenTable, position_ids

__all__ = ["Role", "Selection", "SelectorLike", "TokenMap", "TokenTable", "position_ids"]
