"""A small HTTP engine that answers as vLLM does: tests/serving/test_contract.py holds it to that."""
