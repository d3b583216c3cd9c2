"""Bulk work in units: `plan` cuts a table and knows the parts, `work` does a unit, `runners` hand units out."""
