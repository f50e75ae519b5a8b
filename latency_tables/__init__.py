"""What was measured: tables of costs, and the cost model made of them.

Needs no torch.
"""

from latency_tables.budget import Budget, Infeasible, nearest
from latency_tables.cost import CostModel, Costs
from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.lookup import load_table
from latency_tables.record import COLUMNS, Record
from latency_tables.table import PACKAGED, Table, table_path
from search_spaces.plan import Plan

__all__ = [
    "COLUMNS",
    "PACKAGED",
    "Budget",
    "CostModel",
    "Costs",
    "Header",
    "Infeasible",
    "Plan",
    "Record",
    "Table",
    "TableError",
    "load_table",
    "nearest",
    "table_path",
]
