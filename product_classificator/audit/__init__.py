"""From a run and a table to what is likely wrong with the table: labels, near-duplicates, outliers, broken rows."""

from product_classificator.audit.findings import KIND_TITLES
from product_classificator.audit.run import Audit, audit_run

__all__ = ["KIND_TITLES", "Audit", "audit_run"]
