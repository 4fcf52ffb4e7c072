"""pydantic models -> CRDs. `python -m tunesmith.schema` writes them to crds/ and to the chart."""
