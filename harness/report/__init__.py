"""From the record to the report: tables, figures and a page."""
