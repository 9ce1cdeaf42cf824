"""Evaluates methods and layers on photos: a table of values that a later run continues, and a report of it.

`Plan` says what is compared, `Judge` measures batches of photos, `ValueTable` keeps the values in a file, and
`write_report` makes the report of them: a page with a chart and pictures of the best and worst cases, and tables.
"""

from .plan import Plan
from .run import EvaluationSettings, evaluate_photos

__all__ = ["EvaluationSettings", "Plan", "evaluate_photos"]
